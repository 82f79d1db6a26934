"""The defense: a lock on a model's whole state, or on chosen layers, that never leaves the silo.

Nothing here knows of FedML or of how an attack works; files are vaults and a group's secret.

Source: Ren, Deng, Xie, Ma, Ma, "Gradient Leakage Defense with Key-Lock Module for Federated
Learning", arXiv 2305.04095.
"""

from .config import KeyLockConfig
from .entropy import draw_key
from .paper.attach import LockInfo, lock_info, lock_model, redraw_lock, unlock_model
from .paper.attacker_model import draw_effective, effective_state, surrogate
from .paper.export import export_model
from .paper.module import KeyLock, is_locked
from .paper.placement import LayerCheck, LockIssue, ModelCheck, Site, check_model, plan
from .paper.private_state import load_private_state_dict, private_state_dict
from .vault import Vault

__all__ = [
    "KeyLock",
    "KeyLockConfig",
    "LayerCheck",
    "LockInfo",
    "LockIssue",
    "ModelCheck",
    "Site",
    "Vault",
    "check_model",
    "draw_effective",
    "draw_key",
    "effective_state",
    "export_model",
    "is_locked",
    "load_private_state_dict",
    "lock_info",
    "lock_model",
    "plan",
    "private_state_dict",
    "redraw_lock",
    "surrogate",
    "unlock_model",
]
