"""Builds the attacks of `fedml-keylock audit`, before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
import yaml

from ..inversion import Attack, check_known_levels
from ..plugins import attack_of
from .request import Request

__all__ = ["attacks_of", "differs", "levels_of", "sums_of"]

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "inverting_gradients": {"steps": 500, "learning_rate": 0.2, "secret_learning_rate": 0.02},
    "dlg": {"steps": 50, "restarts": 2},
}
"""Settings for audits of minutes; the sources' settings take longer (`--set` restores them)."""


def attacks_of(request: Request) -> dict[str, Attack]:
    """The attacks by name; KeyLockError if one does not exist, or a setting is wrong."""
    names = _listed(request.attacks)
    for field in request.fields:
        name, dot, rest = field.partition(".")
        if not (dot and "=" in rest) or name not in names:
            raise click.UsageError(
                f"--set {field}: not like {names[0]}.steps=500, with an attack of --attacks"
            )
    return {name: attack_of(name, differs(name, request)) for name in names}


def differs(name: str, request: Request) -> dict[str, Any]:
    """An attack's settings in an audit that differ from its defaults."""
    settings = dict(DEFAULTS.get(name, {}))
    for field in request.fields:
        path, _, value = field.partition("=")
        attack, _, key = path.partition(".")
        if attack == name:
            try:
                settings[key] = yaml.safe_load(value)
            except yaml.YAMLError:
                raise click.UsageError(f"--set {field}: {value} is not YAML") from None
    return settings


def levels_of(request: Request) -> list[str]:
    """The levels of knowledge; ConfigError for an unknown name."""
    levels = _listed(request.knowledge)
    check_known_levels(levels)
    return levels


def sums_of(request: Request) -> tuple[int, ...]:
    """Numbers of silos in the sums to attack."""
    words = [word.strip() for word in (request.sums or "").split(",") if word.strip()]
    if not all(word.isdecimal() and int(word) for word in words):
        raise click.UsageError(f"--sum {request.sums}: not numbers of silos such as 1,2,4,9")
    return tuple(dict.fromkeys(map(int, words)))


def _listed(words: str) -> list[str]:
    listed = [word.strip() for word in words.split(",") if word.strip()]
    if not listed:
        raise click.UsageError("--attacks and --knowledge need at least one name")
    return listed
