"""The lock as an attacker sees it: gamma, beta and the mixing as plain unknowns, without a key.

An attacker has no use for the key: whatever it is, the model's gradient depends on it only through
gamma, beta and the mixing (arXiv 2305.04095 evaluates only one that does not notice this).
"""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attach import apply_keylock, lock_model, locks
from .config import KeyLockConfig
from .key import Uniform
from .module import KeyLock, apply_lock

__all__ = ["RevealedLock", "draw_effective", "effective_state", "surrogate"]


class RevealedLock(nn.Module):
    """A lock with gamma ``(c,)``, beta ``(c,)`` and mixing ``(c, c)`` as parameters.

    It keeps no running statistics: an attacker replays a training step, which normalises by the
    batch. It starts as no lock at all: gamma 1, beta 0, mixing the identity.
    """

    def __init__(self, lock: KeyLock) -> None:
        super().__init__()
        self.normalise = lock.normalise
        self.channel_dim = lock.channel_dim
        self.gamma = nn.Parameter(torch.ones(lock.channels))
        self.beta = nn.Parameter(torch.zeros(lock.channels))
        mixed = lock.mixing is not None
        self.register_parameter("mixing", nn.Parameter(torch.eye(lock.channels)) if mixed else None)

    def forward(self, x: Tensor) -> Tensor:
        """The same computation as `KeyLock.forward` in training."""
        if self.normalise == "batch":
            x = F.batch_norm(x, None, None, training=True)
        elif self.normalise == "layer":
            x = F.layer_norm(x, x.shape[-1:])
        return apply_lock(x, self.gamma, self.beta, self.mixing, channel_dim=self.channel_dim)


def surrogate(model: nn.Module, config: KeyLockConfig) -> tuple[nn.Module, tuple[str, ...]]:
    """The attacker's model: a copy of the public one with a revealed lock where silos have theirs.

    Returns:
        The model, and the names of those of its parameters that are the attacker's unknowns.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 3))
        >>> surrogate(model, KeyLockConfig())[1]
        ('0.keylock.gamma', '0.keylock.beta')
    """
    copy = deepcopy(model)
    # the lock is put on by the silos' own code, so that it stands where theirs does
    lock_model(copy, config)
    unknowns = []
    for name, holder, lock in list(locks(copy)):
        revealed = RevealedLock(lock)
        holder.keylock = revealed
        for hooks in (holder._state_dict_hooks, holder._load_state_dict_pre_hooks):
            hooks.clear()
        assert apply_keylock in holder._forward_hooks.values()
        prefix = f"{name}." if name else ""
        unknowns += [f"{prefix}keylock.{n}" for n, _ in revealed.named_parameters()]
    return copy, tuple(unknowns)


def effective_state(model: nn.Module) -> dict[str, Tensor]:
    """The unknowns of `surrogate`, as they are in a locked model. Private, like the lock itself.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 3))
        >>> info = lock_model(model)
        >>> effective_state(model)["0.keylock.gamma"].shape
        torch.Size([6])
    """
    state = {}
    for name, _, lock in locks(model):
        prefix = f"{name}.keylock." if name else "keylock."
        gamma, beta = lock.scale_and_shift()
        state |= {f"{prefix}gamma": gamma.detach(), f"{prefix}beta": beta.detach()}
        if lock.mixing is not None:
            state[f"{prefix}mixing"] = lock.mixing.detach().clone()
    return state


def draw_effective(
    model: nn.Module, config: KeyLockConfig, *, uniform: Uniform
) -> dict[str, Tensor]:
    """The unknowns of a lock that nobody has: one draw from the lock's own distribution, which is
    public. An attacker starts from it.

    Example:
        >>> from fedml_keylock.keylock.key import seeded_uniform
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 3))
        >>> draws = seeded_uniform(torch.Generator().manual_seed(0))
        >>> draw_effective(model, KeyLockConfig(), uniform=draws)["0.keylock.beta"].shape
        torch.Size([6])
    """
    copy = deepcopy(model)
    lock_model(copy, config, uniform=uniform)
    return effective_state(copy)
