"""The defenses: locks on models, which know nothing of FedML or of attacks.

`model.py` has what users call, and the table from a lock's name to its folder. Names are loaded
when first used: settings are checked without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy

if TYPE_CHECKING:
    from .config import KeyLockConfig
    from .description import LayerCheck, LockInfo, LockIssue, ModelCheck
    from .model import (
        check_model,
        export_model,
        load_private_state_dict,
        lock_info,
        lock_model,
        make_lock,
        private_state_dict,
        secret_variables,
        unlock_model,
    )
    from .private import is_locked
    from .protocol import Lock
    from .vault import Vault

_WHERE = {
    "KeyLockConfig": ".config",
    "LayerCheck": ".description",
    "Lock": ".protocol",
    "LockInfo": ".description",
    "LockIssue": ".description",
    "ModelCheck": ".description",
    "Vault": ".vault",
    "check_model": ".model",
    "export_model": ".model",
    "is_locked": ".private",
    "load_private_state_dict": ".model",
    "lock_info": ".model",
    "lock_model": ".model",
    "make_lock": ".model",
    "private_state_dict": ".model",
    "secret_variables": ".model",
    "unlock_model": ".model",
}

__all__ = [
    "KeyLockConfig",
    "LayerCheck",
    "Lock",
    "LockInfo",
    "LockIssue",
    "ModelCheck",
    "Vault",
    "check_model",
    "export_model",
    "is_locked",
    "load_private_state_dict",
    "lock_info",
    "lock_model",
    "make_lock",
    "private_state_dict",
    "secret_variables",
    "unlock_model",
]

__getattr__, __dir__ = lazy(__name__, _WHERE)
