"""The lock as an attacker sees it: gamma and beta as plain unknowns, without a key.

An attacker has no use for the key: whatever it is, the model's gradient depends on it only through
gamma and beta (arXiv 2305.04095 evaluates only one that does not notice this).
"""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...names import under
from ..config import KeyLockConfig
from ..entropy import seeded_uniform
from ..hooks import remove_hooks
from ..rotated import lock_of
from .attach import lock_model
from .chain import detach_chain, lock_values
from .formula import EPS, apply_lock
from .module import KeyLock, locks
from .private_state import keep_private, show_public

__all__ = ["RevealedLock", "draw_effective", "effective_state", "surrogate"]


class RevealedLock(nn.Module):
    """A lock with gamma ``(c,)`` and beta ``(c,)`` as parameters; at first no lock at all.

    It keeps no running statistics: an attacker replays a training step, which normalises by the
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
        """Gamma, for a normalisation layer that reads it."""
        return self.gamma

    def shift(self) -> Tensor:
        """Beta, for a normalisation layer that reads it."""
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


def surrogate(model: nn.Module, config: KeyLockConfig) -> tuple[nn.Module, tuple[str, ...]]:
    """The attacker's model: a copy of the public one with a revealed lock where silos have theirs.

    A lock on the whole state is nowhere in the model: there it is the public one.

    Returns:
        The model, and the names of those of its parameters that are the attacker's unknowns.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 3))
        >>> surrogate(model, KeyLockConfig(module="affine"))[1]
        ('0.keylock.gamma', '0.keylock.beta')

    """
    copy = deepcopy(model)
    if config.is_whole:
        return copy, ()
    # the lock is put on by the silos' own code, so that it stands where theirs does
    lock_model(copy, config)
    detach_chain(copy)  # to him each gamma and beta is an unknown, whatever it is made of
    unknowns = []
    for name, holder, lock in list(locks(copy)):
        holder.keylock = revealed = RevealedLock(lock).to(next(lock.parameters()))
        # the layer's class runs whatever lock is there
        remove_hooks(holder, show_public, keep_private)
        unknowns += [under(name, f"keylock.{n}") for n, _ in revealed.named_parameters()]
    return copy, tuple(unknowns)


def effective_state(model: nn.Module) -> dict[str, Tensor]:
    """The unknowns of `surrogate`, as they are in a locked model. Private, like the lock itself.

    Of a lock on the whole state, what its update_transform is revealed by: the key, and under which rounds'
    turns are the model that it has received last and the one that it sends next.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 3))
        >>> info = lock_model(model, KeyLockConfig(module="affine"))
        >>> effective_state(model)["0.keylock.gamma"].shape
        torch.Size([6])

    """
    whole = lock_of(model)
    if whole is not None:  # what a round sends is turned anew
        place = {"before": whole.round.clone(), "after": whole.round + 1}
        return {"key": whole.key.clone(), **place, **whole.masks.tensors}
    state: dict[str, Tensor] = {}
    for name, (gamma, beta) in lock_values(model).items():
        prefix = under(name, "keylock.")
        state |= {f"{prefix}gamma": gamma.detach(), f"{prefix}beta": beta.detach()}
    return state


def draw_effective(
    model: nn.Module, config: KeyLockConfig, count: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """The unknowns of locks that nobody has, drawn as a new silo's are: an attacker's starts.

    Args:
        model: the public model.
        config: how silos lock it.
        count: how many locks.
        generator: the attacker's.

    Returns:
        Name to ``(count, *shape)``.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 3))
        >>> g = torch.Generator().manual_seed(0)
        >>> draw_effective(model, KeyLockConfig(module="affine"), 4, g)["0.keylock.beta"].shape
        torch.Size([4, 6])

    """
    # the key's length has no part in the distribution of gamma and beta, and long keys take time
    short = config.model_copy(update={"key_length": 8})
    draws = []
    for _ in range(count):
        copy = deepcopy(model)
        lock_model(copy, short, uniform=seeded_uniform(generator))
        draws.append(effective_state(copy))
    return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}
