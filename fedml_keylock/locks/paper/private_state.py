"""Separates a locked model's public state from its private state, by hooks.

Every name of the unlocked model is public. On a locked normalisation layer the public values are
constants: weight 1, bias 0, and (unless shared on purpose) running mean 0, running variance 1, no
batches seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import VaultError
from ...tensors import under
from .layers import public_parameter
from .module import KeyLock, locks
from .placement import STATISTICS

__all__ = ["keep_private", "load_private", "lock_tensors", "private_tensors", "show_public"]


def private_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Everything private in a locked model, name to tensor; not copies."""
    tensors: dict[str, Tensor] = lock_tensors(model)
    for name, holder, _ in locks(model):
        for own in _hidden_statistics(holder):
            tensor = holder._buffers[own]
            assert tensor is not None
            tensors[under(name, own)] = tensor
    return tensors


def load_private(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load private state into a model that is locked in the same way.

    Raises:
        VaultError: the state belongs to another lock; the model is unchanged.

    """
    own = private_tensors(model)
    differing = sorted(own.keys() ^ state.keys()) or sorted(
        name for name in own if own[name].shape != state[name].shape
    )
    if differing:
        raise VaultError(f"the private state is that of another lock: {differing[0]} differs")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def lock_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model's locks, by their names in the model; not copies."""
    return {
        under(name, f"keylock.{own}"): tensor
        for name, _, lock in locks(model)
        for own, tensor in (*lock.named_parameters(), *lock.named_buffers())
    }


def _hidden_statistics(holder: nn.Module) -> list[str]:
    lock = holder.keylock
    assert isinstance(lock, KeyLock)
    if lock.normalise is not None or lock.share_statistics:
        return []
    return [name for name in STATISTICS if holder._buffers.get(name) is not None]


def show_public(holder: nn.Module, state: dict[str, Any], prefix: str, _metadata: object) -> None:
    """State-dict hook of a locked layer: leaves private running statistics out of the state."""
    for name in _hidden_statistics(holder):
        state[prefix + name] = torch.full_like(state[prefix + name], STATISTICS[name])


def keep_private(holder: nn.Module, state: dict[str, Any], prefix: str, *_others: object) -> None:
    """Load hook of a locked layer: keeps private and fixed values from being overwritten."""
    lock = holder.keylock
    assert isinstance(lock, KeyLock)
    own: dict[str, Tensor | None] = {name: public_parameter(holder, name) for name in lock.before}
    own |= {name: holder._buffers[name] for name in _hidden_statistics(holder)}
    for name, tensor in own.items():
        if prefix + name in state:
            assert tensor is not None
            state[prefix + name] = tensor.detach()
