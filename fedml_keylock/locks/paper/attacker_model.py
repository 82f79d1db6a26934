"""Builds the attacker's model: gamma and beta as plain secret variables, without a key.

An attacker does not need the key: the model's gradient depends on it only through gamma and beta.
(arXiv 2305.04095 evaluates only an attacker who does not notice this.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...tensors import deep_copy, under
from ..config import KeyLockConfig
from ..entropy import secret_uniform, seeded_uniform
from ..private import remove_hooks
from .attach import attach
from .chain import detach_chain, lock_values
from .module import EPS, KeyLock, apply_lock, locks
from .private_state import keep_private, show_public

__all__ = ["AttackerLock", "attacker_model", "draw_gammas_and_betas", "gammas_and_betas"]


class AttackerLock(nn.Module):
    """A lock with gamma ``(c,)`` and beta ``(c,)`` as parameters; initially it changes nothing.

    It keeps no running statistics: an attacker simulates a training step, which normalises by the
    batch.
    """

    def __init__(self, lock: KeyLock) -> None:
        super().__init__()
        self.normalise = lock.normalise
        self.channel_dim = lock.channel_dim
        self.fused = lock.fused
        self.gamma = nn.Parameter(torch.ones(lock.channels))
        self.beta = nn.Parameter(torch.zeros(lock.channels))

    def scale(self) -> Tensor:
        """Gamma, for a normalisation layer that applies it."""
        return self.gamma

    def shift(self) -> Tensor:
        """Beta, for a normalisation layer that applies it."""
        return self.beta

    def forward(self, x: Tensor) -> Tensor:
        """The same computation as `KeyLock.forward` in training."""
        if self.normalise == "batch":
            x = F.batch_norm(x, None, None, training=True, eps=EPS)
        elif self.normalise == "layer":
            x = F.layer_norm(x, x.shape[-1:], eps=EPS)
        if self.fused:
            return x
        return apply_lock(x, self.gamma, self.beta, channel_dim=self.channel_dim)


def attacker_model(model: nn.Module, config: KeyLockConfig) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy of the public model with gamma and beta as plain parameters where silos have locks.

    Returns:
        The model, and the names of its parameters that are the attacker's secret variables.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 3))
        >>> attacker_model(model, KeyLockConfig(lock="paper"))[1]
        ('0.keylock.gamma', '0.keylock.beta')

    """
    copy = deep_copy(model)
    # the silos' own code attaches the lock, so that its position is the same
    attach(copy, config, key=None, uniform=secret_uniform)
    detach_chain(copy)  # for an attacker each gamma and beta is a variable of its own
    unknowns = []
    for name, holder, lock in list(locks(copy)):
        holder.keylock = attacker = AttackerLock(lock).to(next(lock.parameters()))
        # the layer's class runs any lock that is attached
        remove_hooks(holder, show_public, keep_private)
        unknowns += [under(name, f"keylock.{n}") for n, _ in attacker.named_parameters()]
    return copy, tuple(unknowns)


def gammas_and_betas(model: nn.Module) -> dict[str, Tensor]:
    """The secret variables of `attacker_model` in a locked model. Private, like the lock."""
    state: dict[str, Tensor] = {}
    for name, (gamma, beta) in lock_values(model).items():
        prefix = under(name, "keylock.")
        state |= {f"{prefix}gamma": gamma.detach(), f"{prefix}beta": beta.detach()}
    return state


def draw_gammas_and_betas(
    model: nn.Module, config: KeyLockConfig, count: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Random initial values for the secret variables, drawn like those of a new silo.

    Args:
        model: the public model.
        config: how silos lock it.
        count: how many draws.
        generator: the attacker's.

    Returns:
        Name to ``(count, *shape)``.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 3))
        >>> g = torch.Generator().manual_seed(0)
        >>> draw_gammas_and_betas(model, KeyLockConfig(lock="paper"), 4, g)["0.keylock.beta"].shape
        torch.Size([4, 6])

    """
    # gamma and beta have the same distribution for every key length, and long keys take time
    short = config.model_copy(update={"key_length": 8})
    draws = []
    for _ in range(count):
        copy = deep_copy(model)
        attach(copy, short, key=None, uniform=seeded_uniform(generator))
        draws.append(gammas_and_betas(copy))
    return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}
