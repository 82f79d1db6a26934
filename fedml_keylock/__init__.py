"""fedml-keylock: stops gradient leakage in FedML's cross-silo training, and shows what it stopped.

Importing this package imports neither torch nor fedml: its names are loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import lazy

if TYPE_CHECKING:
    from .hookspecs import hookimpl
    from .host import activate, deactivate, is_active
    from .locks import (
        KeyLockConfig,
        LockInfo,
        LockIssue,
        ModelCheck,
        check_model,
        export_model,
        is_locked,
        load_private_state_dict,
        lock_info,
        lock_model,
        private_state_dict,
        unlock_model,
    )
    from .types import ClientUpdate, Reconstruction

__version__ = "0.2.0"

_WHERE = {
    "ClientUpdate": ".types",
    "KeyLockConfig": ".locks",
    "LockInfo": ".locks",
    "LockIssue": ".locks",
    "ModelCheck": ".locks",
    "Reconstruction": ".types",
    "activate": ".host",
    "check_model": ".locks",
    "deactivate": ".host",
    "export_model": ".locks",
    "hookimpl": ".hookspecs",
    "is_active": ".host",
    "is_locked": ".locks",
    "load_private_state_dict": ".locks",
    "lock_info": ".locks",
    "lock_model": ".locks",
    "private_state_dict": ".locks",
    "unlock_model": ".locks",
}

__all__ = [
    "ClientUpdate",
    "KeyLockConfig",
    "LockInfo",
    "LockIssue",
    "ModelCheck",
    "Reconstruction",
    "activate",
    "check_model",
    "deactivate",
    "export_model",
    "hookimpl",
    "is_active",
    "is_locked",
    "load_private_state_dict",
    "lock_info",
    "lock_model",
    "private_state_dict",
    "unlock_model",
]


__getattr__, __dir__ = lazy(__name__, _WHERE)
