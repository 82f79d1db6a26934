"""Runs the chained lock: a layer's gamma and beta are the next layer's keys (arXiv 2305.04095).

The chain is computed once, at the start of the model's forward pass, and each lock finds its values
there. Lock by lock it would take time quadratic in the number of layers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..private import remove_hooks
from .module import KeyLock, locks

__all__ = ["attach_chain", "detach_chain", "lock_values", "next_values"]

CHAIN = "_keylock_chain"
"""The attribute of a model that names the holders of its locks, in the chain's order."""

Values = tuple[Tensor, Tensor]


def next_values(lock: KeyLock, before: Values | None) -> Values:
    """Gamma and beta ``(c,)`` of a lock, from those of the previous lock.

    Example:
        >>> from fedml_keylock.locks import KeyLockConfig
        >>> gamma, beta = next_values(KeyLock(3, KeyLockConfig(lock="paper")), None)
        >>> gamma.shape
        torch.Size([3])

    """
    if before is None:
        return lock.scale(), lock.shift()
    return lock.scale(before[0]), lock.shift(before[1])


def lock_values(model: nn.Module) -> dict[str, Values]:
    """Gamma and beta ``(c,)`` of every lock of a model, by the name of its holder."""
    values: dict[str, Values] = {}
    before = None
    for name in getattr(model, CHAIN, ()):
        before = values[name] = next_values(_lock(model, name), before)
    return values or {name: (lock.scale(), lock.shift()) for name, _, lock in locks(model)}


def attach_chain(model: nn.Module, holders: tuple[str, ...]) -> None:
    """Make a model compute each lock's key in every forward pass."""
    setattr(model, CHAIN, holders)
    model.register_forward_pre_hook(hand_out)
    model.register_forward_hook(take_back, always_call=True)


def detach_chain(model: nn.Module) -> None:
    """Undo `attach_chain`; nothing on a model without one."""
    if not hasattr(model, CHAIN):
        return
    delattr(model, CHAIN)
    remove_hooks(model, hand_out, take_back)


def hand_out(model: nn.Module, _inputs: Any) -> None:
    """Forward pre-hook of a chained model, at module level: a copied model runs its own chain."""
    for name, values in lock_values(model).items():
        _lock(model, name).values = values


def take_back(model: nn.Module, _inputs: Any, _output: Any) -> None:
    """Forward hook of a chained model, also called after an exception: drops the pass's values."""
    for name in getattr(model, CHAIN):
        _lock(model, name).values = None


def _lock(model: nn.Module, holder: str) -> KeyLock:
    lock = model.get_submodule(holder).keylock
    assert isinstance(lock, KeyLock)
    return lock
