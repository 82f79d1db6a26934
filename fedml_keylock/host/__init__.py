"""Connects this package to FedML. Only `host.fedml` imports fedml or names its parts."""

from __future__ import annotations

import gc
import sys

__all__ = ["activate", "deactivate", "is_active"]


def activate() -> None:
    """Register this package's defenses and attacks with FedML; the job's YAML decides what runs.

    Imports fedml, which takes seconds. Idempotent; `deactivate` undoes it.

    Raises:
        HostError: this FedML was not tested.

    """
    collecting = gc.isenabled()
    # the import makes a million lasting objects: without the collector it is a sixth faster
    gc.disable()
    try:
        from .fedml import activate
    finally:
        if collecting:
            gc.enable()
    activate()


def deactivate() -> None:
    """Restore FedML as it was before `activate`. Idempotent."""
    if f"{__name__}.fedml" in sys.modules:
        from .fedml import deactivate

        deactivate()


def is_active() -> bool:
    """Whether this package is registered with FedML.

    Example:
        >>> is_active()
        False

    """
    if f"{__name__}.fedml" not in sys.modules:
        return False
    from .fedml import is_active

    return is_active()
