"""The defenses: locks on models, which know nothing of FedML or of attacks.

`model.py` has what users call, and the table from a lock's name to its folder.
"""

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
