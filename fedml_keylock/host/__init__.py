"""The seams into FedML. `host.fedml` is the only package that imports fedml or names its parts."""

from __future__ import annotations

import gc
import sys

__all__ = ["activate", "deactivate", "is_active"]


def activate() -> None:
    """Make this package's defenses and attacks known to FedML; the job's YAML decides what runs.

    Imports fedml, which takes seconds. Idempotent; `deactivate` takes it back.

    Raises:
        HostError: this FedML is not one that was tested.

    """
    collecting = gc.isenabled()
    # a million objects are made that stay: without the collector it takes a sixth less time
    gc.disable()
    try:
        from .fedml import activate
    finally:
        if collecting:
            gc.enable()
    activate()


def deactivate() -> None:
    """Leave FedML as it was before `activate`. Idempotent."""
    if f"{__name__}.fedml" in sys.modules:
        from .fedml import deactivate

        deactivate()


def is_active() -> bool:
    """Whether FedML knows this package.

    Example:
        >>> is_active()
        False

    """
    if f"{__name__}.fedml" not in sys.modules:
        return False
    from .fedml import is_active

    return is_active()
