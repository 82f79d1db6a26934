"""The functions that users call on models, and the table from a lock's name to its class."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..errors import LockError
from .composed import SealedPaperLock
from .config import KeyLockConfig
from .description import LockInfo, ModelCheck
from .entropy import Uniform
from .paper.lock import PaperLock
from .protocol import Lock
from .rotated.lock import RotatedLock
from .sealed.lock import SealedLock

__all__ = [
    "LOCKS",
    "check_model",
    "export_model",
    "load_private_state_dict",
    "lock_info",
    "lock_model",
    "make_lock",
    "private_state_dict",
    "secret_variables",
    "unlock_model",
]

LOCKS: Mapping[str, type[Lock]] = {
    "sealed": SealedLock,
    "rotated": RotatedLock,
    "paper": PaperLock,
    "paper+sealed": SealedPaperLock,
}
"""Every lock by its name in `keylock.lock`. Nothing else asks which lock it is."""


def make_lock(config: KeyLockConfig | None = None) -> Lock:
    """Make the lock that a configuration names, or the default one.

    Example:
        >>> make_lock(KeyLockConfig(lock="paper", layers="all")).title
        'keylock:paper:all'

    """
    config = config or KeyLockConfig()
    return LOCKS[config.kind](config)


def _lock_on(model: nn.Module) -> type[Lock]:
    """The class of the lock on a model.

    Raises:
        LockError: the model carries none.

    """
    for kind in LOCKS.values():
        if kind.is_on(model):
            return kind
    raise LockError("the model is not locked")


def check_model(model: nn.Module, config: KeyLockConfig | None = None) -> ModelCheck:
    """What locking this model would do, and every reason why it cannot be locked.

    The model is not changed.

    Args:
        model: any module.
        config: which lock; None for the default one.

    Example:
        >>> checked = check_model(nn.Sequential(nn.Conv2d(1, 2, 3)), KeyLockConfig(lock="paper"))
        >>> print(checked)
        0  locked  by a lock on it, with a batch norm of its own
        constant: 0; shared: 2

    """
    return make_lock(config).check(model)


def lock_model(
    model: nn.Module,
    config: KeyLockConfig | None = None,
    *,
    key: Tensor | None = None,
    uniform: Uniform | None = None,
) -> LockInfo:
    """Lock a model in place. Its class, layer names and public state names stay the same.

    `lock: sealed` and `lock: rotated` change nothing in the model. Its attribute `keylock` is a
    handle that seals and opens, or rotates and rotates back, what is sent. `lock: paper` attaches
    to the layers that it locks. The weight and bias of a locked normalisation layer are set to 1
    and 0 and no longer trained; gamma and beta take their place.

    Args:
        model: any module with parameters; for `lock: paper`, with a convolution.
        config: which lock; None for the default one.
        key: for `lock: paper`, ``(K,)``, the same for every layer that has one; None draws it from
            the system's entropy.
        uniform: the source of random numbers: the system's entropy, or the group's secret.
            Pass another only for attackers and tests, which simulate locks.

    Raises:
        ConfigError: the group's secret is too short.
        VaultError: its file is missing, or other users may read it.
        LockError: nothing in the model can be locked, it is locked already, or the key does not
            fit. The model is unchanged.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten())
        >>> names = list(model.state_dict())
        >>> print(lock_model(model, KeyLockConfig(lock="paper", key_length=16)))
        locked 0: 24 private parameters beside 60 public ones
        >>> list(model.state_dict()) == names
        True

    """
    return make_lock(config).lock(model, key=key, uniform=uniform)


def lock_info(model: nn.Module) -> LockInfo:
    """The locks on a model, and how many channels are dead under them.

    Raises:
        LockError: the model is not locked.

    """
    return _lock_on(model).info(model)


def unlock_model(model: nn.Module) -> None:
    """Remove the lock, and give locked normalisation layers their own weight and bias back.

    A model that was not trained in between computes exactly what it did before.

    Raises:
        LockError: the model is not locked.

    Example:
        >>> from fedml_keylock.locks import is_locked
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 3))
        >>> info = lock_model(model)
        >>> unlock_model(model)
        >>> is_locked(model)
        False

    """
    _lock_on(model).unlock(model)


def private_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Copy everything private in a locked model, name to tensor. For the vault only.

    Raises:
        LockError: the model is not locked.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 3))
        >>> info = lock_model(model, KeyLockConfig(lock="paper"))
        >>> sorted(private_state_dict(model))[0]
        '0.keylock.bias_beta'

    """
    return _lock_on(model).private_state(model)


def load_private_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load private state into a model that is locked in the same way.

    Raises:
        LockError: the model is not locked.
        VaultError: the state belongs to another lock; the model is unchanged.

    """
    _lock_on(model).load_private(model, state)


def secret_variables(model: nn.Module) -> dict[str, Tensor]:
    """The secret variables of a locked model, which an attacker who knows the lock lacks. Private.

    Raises:
        LockError: the model is not locked.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 3))
        >>> info = lock_model(model, KeyLockConfig(lock="paper"))
        >>> sorted(secret_variables(model))
        ['0.keylock.beta', '0.keylock.gamma']

    """
    return _lock_on(model).secret_variables(model)


def export_model(model: nn.Module) -> nn.Module:
    """A plain copy of a locked model with every lock folded in. The model itself stays unchanged.

    In evaluation mode it gives the same outputs. It carries no class, hook or attribute of this
    package: it can be pickled, scripted and exported where the unlocked model can, and loads where
    this package is not installed. It is for evaluation only, and returned in that mode: a
    convolution that absorbed a batch norm holds the silo's running statistics.

    Args:
        model: locked, with the private state to fold in.

    Raises:
        LockError: the model is not locked, is part of a locked model, has no values (on meta), or
            has a lock that cannot be folded in.

    Example:
        >>> import torch
        >>> from fedml_keylock.locks import is_locked
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)).eval()
        >>> info = lock_model(model, KeyLockConfig(lock="paper"))
        >>> plain, x = export_model(model), torch.rand(2, 1, 5, 5)
        >>> torch.allclose(plain(x), model(x), atol=1e-5)
        True
        >>> is_locked(plain)
        False

    """
    kind = _lock_on(model)
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        raise LockError("the model has no values to export: it is on meta")
    return kind.export(model)
