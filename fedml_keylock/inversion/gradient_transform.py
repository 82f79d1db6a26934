"""Transforms gradients as silos do before sending, and simulates it for an attacker.

``apply`` is the silo's side, on one gradient. ``replay`` is the attacker's side, on the gradients
of b candidates, in a differentiable form.
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
    """One operation on a gradient before it is sent."""

    def apply(self, gradient: Mapping[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """What the silo sends instead of its gradient."""

    def replay(self, gradients: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
        """What candidates would have sent, given what was sent: both ``(b, *shape)`` a layer."""


@checked
class Clip:
    """Scales a gradient down to a norm, as DP-SGD does (Abadi et al. 2016, algorithm 1).

    Attributes:
        norm: the largest L2 norm over all layers together, above 0.

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
        """Scale each candidate's gradient."""
        square = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)
        # the root has no derivative at 0
        factor = (self.norm / square.clamp(min=torch.finfo(square.dtype).tiny).sqrt()).clamp(max=1)
        return [g * factor.view(-1, *[1] * (g.dim() - 1)) for g in gradients]


@checked
class Noise:
    """Adds independent normal noise to every entry, which no attacker can simulate.

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
        """The expectation: candidates' gradients unchanged."""
        return list(gradients)


@checked
class Prune:
    """Sends only the largest entries of each layer (Zhu et al. 2019, section 5.2).

    The attacker sees which entries were sent, and compares only those.

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
        """Set to 0 the entries that the silo did not send."""
        return [g * (t != 0) for g, t in zip(gradients, targets, strict=True)]


@checked
class Quantise:
    """Rounds each layer to evenly spaced levels between its smallest and its largest entry.

    The attacker rounds as well, with a straight-through derivative.

    Attributes:
        bits: of an entry, 1 to 16.

    Example:
        >>> Quantise(1).apply({"w": torch.tensor([0.0, 0.4, 0.7, 1.0])}, torch.Generator())
        {'w': tensor([0., 0., 1., 1.])}

    """

    bits: Annotated[int, Field(ge=1, le=16)]

    def apply(self, gradient: Mapping[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """Round one gradient."""
        return {name: self._rounded(value[None])[0] for name, value in gradient.items()}

    def replay(self, gradients: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
        """Round each candidate's gradient."""
        return [g + (self._rounded(g) - g).detach() for g in gradients]

    def _rounded(self, value: Tensor) -> Tensor:
        flat = value.flatten(1)
        low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
        step = ((high - low) / (2**self.bits - 1)).clamp(min=torch.finfo(flat.dtype).tiny)
        rounded: Tensor = low + ((flat - low) / step).round() * step
        return rounded.view_as(value)
