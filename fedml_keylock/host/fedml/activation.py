"""Put every seam into FedML, or take it out."""

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
    HOOKS.install()


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
        _guard = Patches(guards(str(error), HOOKS))
        _guard.apply()
        return None if _guard.seams else f"{error}; until then jobs are not defended"
    return None


def deactivate() -> None:
    """Take the seams out: FedML is as it was, attribute by attribute. Idempotent."""
    HOOKS.remove()
    _patches.restore()
    _guard.restore()
    current_job.forget()


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
        current_job.entry_names()
    except (ImportError, AttributeError) as error:  # another release, with other parts
        problems = [str(error)]
    return unsupported(version, problems)


def seams() -> tuple[Seam, ...]:
    """Every function of FedML that is wrapped, and the parameters it must have.

    Raises:
        ImportError: this FedML does not have a module or class that holds one.

    """
    rooms = (security, cross_silo, aggregation, receiving, reporting, sp)
    return tuple(seam for room in rooms for seam in room.seams())


_patches = Patches(())
_guard = Patches(())
