"""The lock as an attacker sees it: gamma, beta and the mixing as plain unknowns, without a key.

An attacker has no use for the key: whatever it is, the model's gradient depends on it only through
gamma, beta and the mixing (arXiv 2305.04095 evaluates only one that does not notice this).
"""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attach import lock_model, remove_hooks
from .chain import detach_chain, lock_values
from .config import KeyLockConfig
from .formula import apply_lock
from .key import secret_uniform, seeded_uniform
from .module import KeyLock, WeightLock, every_lock
from .on_weights import OnWeights
from .pieces import neutral
from .state import keep_private, show_public

__all__ = ["RevealedLock", "draw_effective", "effective_state", "surrogate"]


class RevealedLock(OnWeights, nn.Module):
    """A lock with gamma ``(c,)``, beta ``(c,)`` and each of its pieces as parameters.

    A gamma and beta that everybody knows are constants: there is nothing to search.

    It keeps no running statistics: an attacker replays a training step, which normalises by the
    batch. It starts as no lock at all: gamma 1, beta 0, every mixing the identity; but weights
    that are private altogether start at 0.
    """

    def __init__(self, lock: KeyLock | WeightLock) -> None:
        super().__init__()
        self.on_weights = lock.on_weights
        self.gamma: Tensor | None
        self.beta: Tensor | None
        self.turns_only = isinstance(lock, KeyLock) and lock.turns_only
        if isinstance(lock, KeyLock):
            self.normalise = lock.normalise
            self.channel_dim = lock.channel_dim
            self.fused = lock.fused
        starts: dict[str, Tensor | None] = {"gamma": None, "beta": None}
        if isinstance(lock, KeyLock):
            starts = {"gamma": torch.ones(lock.channels), "beta": torch.zeros(lock.channels)}
        for name, start in starts.items():
            if start is None or self.turns_only:
                self.register_buffer(name, start)
            else:
                self.register_parameter(name, nn.Parameter(start))
        self.hold({name: neutral(name, piece.detach()) for name, piece in lock.pieces.items()})

    def scale(self) -> Tensor:
        """Gamma, for a normalisation layer that reads it."""
        assert self.gamma is not None
        return self.gamma

    def shift(self) -> Tensor:
        """Beta, for a normalisation layer that reads it."""
        assert self.beta is not None
        return self.beta

    def affine(self) -> tuple[Tensor | None, Tensor | None]:
        """Gamma and beta, where they stand on the weight."""
        if self.gamma is None or self.turns_only:
            return None, None
        alone = self.on_weights and self.normalise is None
        return (self.gamma, self.beta) if alone else (None, None)

    def on_result(self, x: Tensor) -> Tensor:
        """What the layer computed with what was made of its weight, locked."""
        return x if self.gamma is None else self(x)

    def forward(self, x: Tensor) -> Tensor:
        """The same computation as `KeyLock.forward` in training."""
        if self.normalise == "batch":
            x = F.batch_norm(x, None, None, training=True)
        elif self.normalise == "layer":
            x = F.layer_norm(x, x.shape[-1:])
        if self.normalise is not None or not (self.fused or self.on_weights):
            x = apply_lock(x, self.scale(), self.shift(), None, channel_dim=self.channel_dim)
        return self.behind(x)


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
    lock_model(copy, config, uniform=secret_uniform)  # a group's secret he has not
    detach_chain(copy)  # to him each gamma and beta is an unknown, whatever it is made of
    unknowns = []
    for name, holder, lock in list(every_lock(copy)):
        holder.keylock = revealed = RevealedLock(lock).to(next(lock.parameters()))
        # the layer's class runs whatever lock is there
        remove_hooks(holder, show_public, keep_private)
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
    state: dict[str, Tensor] = {}
    values = lock_values(model)
    for name, _, lock in every_lock(model):
        prefix = f"{name}.keylock." if name else "keylock."
        if isinstance(lock, KeyLock) and not lock.turns_only:
            gamma, beta = values[name]
            state |= {f"{prefix}gamma": gamma.detach(), f"{prefix}beta": beta.detach()}
        state |= {f"{prefix}{n}": piece.detach().clone() for n, piece in lock.pieces.items()}
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
        >>> draw_effective(model, KeyLockConfig(), 4, g)["0.keylock.beta"].shape
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
