"""Put every seam into FedML, or take it out; what is said where this FedML does not fit."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

import fedml

from ...errors import HostError
from ..abort import AbortOnError, end_job, in_mpi_job
from ..flags import INVERSION, our_attack, our_defense
from ..patching import Function, Patches, Seam
from ..supported import unsupported
from . import cross_silo, job, receiving, security, simulation

__all__ = ["activate", "activate_or_guard", "deactivate", "is_active", "misfit", "seams"]


def activate() -> None:
    """Put the seams in. Idempotent.

    Raises:
        HostError: this FedML is not one that was tested, or a seam does not fit; nothing changed.

    Example:
        >>> activate(); is_active()
        True
        >>> deactivate(); is_active()
        False

    """
    global _patches
    if is_active():
        return
    problem = misfit()
    if problem is not None:
        raise HostError(problem)
    _guard.restore()
    _patches = Patches(seams())
    _patches.apply()
    _abort.install()


def activate_or_guard() -> str | None:
    """Put the seams in, or else what stops a job that asks for them. For the start-up file.

    A program that merely imports fedml is not to end because this package does not fit it; a job
    that asks for the defense is not to run without it.

    Returns:
        What is to be said at once: why nothing could be put in. None otherwise.

    Example:
        >>> activate_or_guard() is None, is_active()
        (True, True)
        >>> deactivate()

    """
    global _guard
    if _guard.applied:
        return None
    try:
        activate()
    except HostError as error:
        _guard = Patches(tuple(_guards(str(error))))
        _guard.apply()
        return None if _guard.seams else f"{error}; until then jobs are not defended"
    return None


def deactivate() -> None:
    """Take the seams out: FedML is as it was, attribute by attribute. Idempotent."""
    _abort.remove()
    _patches.restore()
    _guard.restore()
    job.forget()


def is_active() -> bool:
    """Whether the seams are in."""
    return _patches.applied


def misfit() -> str | None:
    """Why this FedML cannot be defended, naming it and what was tested; None if it can.

    Example:
        >>> misfit() is None
        True

    """
    version = str(getattr(fedml, "__version__", "of no version"))
    try:
        problems = Patches(seams()).problems()
        job.state_key()
        job.index_key()
    except (ImportError, AttributeError) as error:  # another release, with other parts
        problems = [str(error)]
    return unsupported(version, problems)


_GUARDED = (
    ("fedml.core.security.fedml_attacker", "FedMLAttacker", "init"),
    ("fedml.core.security.fedml_defender", "FedMLDefender", "init"),
    ("fedml.runner", "FedMLRunner", "__init__"),
)
"""Where FedML reads the flags, and where a job begins: a server and a silo pass by one of them."""


def _guards(problem: str) -> Iterator[Seam]:
    """A seam for each place of FedML's that a job's arguments pass by, as far as there are any."""
    places: list[tuple[Any, str]] = []
    for module, owner, name in _GUARDED:
        try:
            places.append((getattr(import_module(module), owner), name))
        except (ImportError, AttributeError):
            continue
    places = [place for place in places if _has_function(*place)]
    if not places and _has_function(fedml, "init"):
        places = [(fedml, "init")]
    for held, name in places:
        yield Seam(held, name, None, functools.partial(_guarded, problem))


def _has_function(owner: Any, name: str) -> bool:
    return inspect.isfunction(vars(owner).get(name))


def _guarded(problem: str, original: Function) -> Function:
    @functools.wraps(original)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        _refuse(problem, (*args, *kwargs.values()))
        result = original(*args, **kwargs)
        _refuse(problem, (result,))  # fedml.init makes the arguments itself, and returns them
        return result

    return guarded


def _refuse(problem: str, values: Iterable[Any]) -> None:
    """Stop the job if one of the values is its arguments and they ask for what cannot be had."""
    for value in values:
        defense = our_defense(value)
        if defense is None and not our_attack(value):
            continue
        flag = f"attack_type: {INVERSION}" if defense is None else f"defense_type: {defense}"
        error = HostError(f"{flag} cannot be had: {problem}")
        if in_mpi_job():
            end_job(error)
        _abort.install()  # one line, where nobody catches it
        raise error


def seams() -> tuple[Seam, ...]:
    """Every function of FedML that is wrapped, and the parameters it must have.

    Raises:
        ImportError: this FedML does not have a module or class that holds one.

    """
    return (*security.seams(), *cross_silo.seams(), *receiving.seams(), *simulation.seams())


_patches = Patches(())
_guard = Patches(())
_abort = AbortOnError()
