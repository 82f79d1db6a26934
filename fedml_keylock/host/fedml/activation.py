"""Installs and removes every seam in FedML."""

from __future__ import annotations

import fedml

from ...errors import HostError
from ..abort import HOOKS
from ..compatibility import unsupported
from ..patching import Patches, Seam
from . import aggregation, cross_silo, current_job, receiving, reporting, security, sp
from .guard import guards

__all__ = ["activate", "activate_or_guard", "deactivate", "is_active", "misfit", "seams"]


def activate() -> None:
    """Install the seams. Idempotent.

    Raises:
        HostError: this FedML was not tested, or a seam does not fit; nothing has changed.

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
    HOOKS.install()


def activate_or_guard() -> str | None:
    """Install the seams, or else guards that stop jobs that ask for the defense.

    For the start-up file. A program that merely imports fedml must not end because this package
    does not fit. A job that asks for the defense must not run without it.

    Returns:
        What to print at once: why nothing could be installed. None otherwise.

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
        _guard = Patches(guards(str(error), HOOKS))
        _guard.apply()
        return None if _guard.seams else f"{error}; until then jobs are not defended"
    return None


def deactivate() -> None:
    """Remove the seams: FedML is as before, attribute by attribute. Idempotent."""
    HOOKS.remove()
    _patches.restore()
    _guard.restore()
    current_job.forget()


def is_active() -> bool:
    """Whether the seams are installed."""
    return _patches.applied


def misfit() -> str | None:
    """Why this FedML is not supported, naming it and the tested releases; None if it is.

    Example:
        >>> misfit() is None
        True

    """
    version = str(getattr(fedml, "__version__", "of no version"))
    try:
        problems = Patches(seams()).problems()
        current_job.entry_names()
    except (ImportError, AttributeError) as error:  # another release with other parts
        problems = [str(error)]
    return unsupported(version, problems)


def seams() -> tuple[Seam, ...]:
    """Every function of FedML to wrap, with the parameters it must have.

    Raises:
        ImportError: this FedML lacks a module or class that holds one.

    """
    rooms = (security, cross_silo, aggregation, receiving, reporting, sp)
    return tuple(seam for room in rooms for seam in room.seams())


_patches = Patches(())
_guard = Patches(())
