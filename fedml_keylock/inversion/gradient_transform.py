"""What a silo may do to a gradient before it sends it, and how an attacker replays that.

Each transform has two sides. ``apply`` is the silo's, on one gradient. ``replay`` is the
attacker's, on the gradients of b candidates and in a form that can be differentiated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Generator, Tensor

from ..settings import NotNegative, checked

__all__ = ["Clip", "Noise", "Prune", "Quantise", "Transform"]


@runtime_checkable
class Transform(Protocol):
    """One thing that is done to a gradient."""

    def apply(self, gradient: Mapping[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """What the silo sends instead of its gradient."""

    def replay(self, gradients: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
        """What candidates would have sent, given what was: both ``(b, *shape)`` a layer."""


@checked
class Clip:
    """Scaled down to a norm, as DP-SGD does (Abadi et al. 2016, algorithm 1).

    Attributes:
        norm: greatest L2 norm of all layers together, above 0.

    Example:
        >>> Clip(1.0).apply({"w": torch.tensor([3.0, 4.0])}, torch.Generator())
        {'w': tensor([0.6000, 0.8000])}

    """

    norm: Annotated[float, Field(gt=0)]

    def apply(self, gradient: Mapping[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """Scale one gradient."""
        made = self.replay([value[None] for value in gradient.values()], [])
        return {name: value[0] for name, value in zip(gradient, made, strict=True)}

    def replay(self, gradients: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
        """Scale each candidate's."""
        square = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)
        # the root of 0 has no derivative
        factor = (self.norm / square.clamp(min=torch.finfo(square.dtype).tiny).sqrt()).clamp(max=1)
        return [g * factor.view(-1, *[1] * (g.dim() - 1)) for g in gradients]


@checked
class Noise:
    """Normal noise of its own in every entry, which no attacker can replay.

    Attributes:
        deviation: in the gradient's unit, from 0 on.

    Example:
        >>> Noise(0.0).apply({"w": torch.ones(2)}, torch.Generator())
        {'w': tensor([1., 1.])}

    """

    deviation: NotNegative

    def apply(self, gradient: Mapping[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """Add noise to one gradient."""
        return {
            name: value
            + self.deviation
            * torch.randn(value.shape, generator=generator, device=generator.device).to(value)
            for name, value in gradient.items()
        }

    def replay(self, gradients: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
        """The expectation: as they are."""
        return list(gradients)


@checked
class Prune:
    """Only the largest entries of each layer are sent (Zhu et al. 2019, section 5.2).

    The attacker sees which: he compares those alone.

    Attributes:
        keep: share of entries that are sent, by magnitude; above 0, at most 1.

    Example:
        >>> Prune(0.5).apply({"w": torch.tensor([3.0, -4.0, 1.0, 0.5])}, torch.Generator())
        {'w': tensor([ 3., -4.,  0.,  0.])}

    """

    keep: Annotated[float, Field(gt=0, le=1)]

    def apply(self, gradient: Mapping[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """Set the small entries of one gradient to 0."""
        made = {}
        for name, value in gradient.items():
            count = max(1, round(self.keep * value.numel()))
            kept = value.flatten().abs().topk(count).indices
            mask = torch.zeros_like(value.flatten()).index_fill(0, kept, 1.0)
            made[name] = value * mask.view_as(value)
        return made

    def replay(self, gradients: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
        """Set to 0 what the silo did."""
        return [g * (t != 0) for g, t in zip(gradients, targets, strict=True)]


@checked
class Quantise:
    """Each layer rounded to evenly spaced levels between its least and its greatest entry.

    The attacker rounds as well, and differentiates as if he had not (straight through).

    Attributes:
        bits: of one entry, 1 to 16.

    Example:
        >>> Quantise(1).apply({"w": torch.tensor([0.0, 0.4, 0.7, 1.0])}, torch.Generator())
        {'w': tensor([0., 0., 1., 1.])}

    """

    bits: Annotated[int, Field(ge=1, le=16)]

    def apply(self, gradient: Mapping[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """Round one gradient."""
        return {name: self._rounded(value[None])[0] for name, value in gradient.items()}

    def replay(self, gradients: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
        """Round each candidate's."""
        return [g + (self._rounded(g) - g).detach() for g in gradients]

    def _rounded(self, value: Tensor) -> Tensor:
        flat = value.flatten(1)
        low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
        step = ((high - low) / (2**self.bits - 1)).clamp(min=torch.finfo(flat.dtype).tiny)
        rounded: Tensor = low + ((flat - low) / step).round() * step
        return rounded.view_as(value)
