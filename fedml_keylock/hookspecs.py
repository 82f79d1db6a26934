"""The hooks that a plugin may implement, one sentence each.

A plugin is a package `fedml-keylock-<name>` with an entry point in the group `fedml_keylock` that
names a module; the module's functions are marked with `@fedml_keylock.hookimpl`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from .defense import DefenseFactory
    from .types import ClientUpdate

__all__ = ["PROJECT", "hookimpl", "hookspec"]

PROJECT = "fedml_keylock"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_defenses(register: Callable[[str, DefenseFactory], None]) -> None:
    """Call `register(name, factory)` for each defense that `defense_type` may name."""


@hookspec
def register_attacks(register: Callable[[str, Callable[..., Any]], None]) -> None:
    """Call `register(name, preset)` for each attack that `gradient_inversion.attacks` may name."""


@hookspec
def register_metrics(register: Callable[[str, Callable[..., Any]], None]) -> None:
    """Call `register(name, metric)` for each `metric(images, truth) -> (n,)` that reports show."""


@hookspec
def before_upload(update: ClientUpdate) -> None:
    """See a copy of an update that passed the egress gate, in the silo, before it is sent."""


@hookspec
def after_upload(update: ClientUpdate) -> None:
    """See a copy of an update that passed the server's check, on the server."""


@hookspec
def on_attack_error(attack: str, error: Exception) -> None:
    """Learn that an attack failed on a captured update; the audit goes on without it."""


@hookspec
def after_report(report: dict[str, Any], folder: str) -> None:
    """See a copy of a finished report, and the folder that it was written to."""
