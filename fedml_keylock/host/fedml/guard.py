"""Stops jobs that ask for the defense under an unsupported FedML."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import fedml

from ...errors import HostError
from ..abort import AbortOnError, end_job, in_mpi_job
from ..job_configuration import INVERSION, our_attack, our_defense
from ..patching import Function, Seam, around

__all__ = ["guards"]

_GUARDED = (
    ("fedml.core.security.fedml_attacker", "FedMLAttacker", "init"),
    ("fedml.core.security.fedml_defender", "FedMLDefender", "init"),
    ("fedml.runner", "FedMLRunner", "__init__"),
)
"""Where FedML reads the flags, and where a job begins: every server and silo passes one of them."""


def guards(problem: str, abort: AbortOnError) -> tuple[Seam, ...]:
    """Seams at each existing place of FedML that a job's arguments pass.

    Args:
        problem: why this FedML is not supported.
        abort: prints an uncaught error in one line.

    Example:
        >>> [seam.name for seam in guards("fedml 1.0 was not tested", AbortOnError())]
        ['init', 'init', '__init__']

    """
    places: list[tuple[Any, str]] = []
    for module, owner, name in _GUARDED:
        try:
            places.append((getattr(import_module(module), owner), name))
        except (ImportError, AttributeError):
            continue
    places = [place for place in places if _has_function(*place)]
    if not places and _has_function(fedml, "init"):
        places = [(fedml, "init")]
    refuse = functools.partial(_refuse, problem, abort)
    wrap = around(functools.partial(_guarded, refuse))
    return tuple(Seam(held, name, None, wrap) for held, name in places)


def _has_function(owner: Any, name: str) -> bool:
    return inspect.isfunction(vars(owner).get(name))


def _guarded(
    refuse: Callable[[Iterable[Any]], None], original: Function, *args: Any, **kwargs: Any
) -> Any:
    refuse((*args, *kwargs.values()))
    result = original(*args, **kwargs)
    refuse((result,))  # fedml.init makes the arguments itself, and returns them
    return result


def _refuse(problem: str, abort: AbortOnError, values: Iterable[Any]) -> None:
    """Stop the job if one of the values is its arguments, and they ask for the defense."""
    for value in values:
        defense = our_defense(value)
        if defense is None and not our_attack(value):
            continue
        flag = f"attack_type: {INVERSION}" if defense is None else f"defense_type: {defense}"
        error = HostError(f"{flag} is not available: {problem}")
        if in_mpi_job():
            end_job(error)
        abort.install()
        raise error
