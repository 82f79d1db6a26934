"""Defines the variables that are optimised in place of images, and the plainest: pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from ...settings import checked
from ..knowledge import Knowledge

__all__ = ["Parametrisation", "Pixels", "Unknowns"]

Unknowns = Mapping[str, Tensor]
"""Name to ``(b, *shape)``, a row for each candidate."""
Start = Literal["normal", "standard", "uniform"]


@runtime_checkable
class Parametrisation(Protocol):
    """How variables become images."""

    @property
    def makes_labels(self) -> bool:
        """Whether ``decode`` returns labels too."""

    def shapes(self, knowledge: Knowledge) -> dict[str, tuple[int, ...]]:
        """Name to shape of one candidate's variables; AttackError if it cannot make such images."""

    def draw(self, count: int, knowledge: Knowledge, generator: Generator) -> dict[str, Tensor]:
        """Name to ``(count, *shape)`` initial values."""

    def decode(self, unknowns: Unknowns, knowledge: Knowledge) -> tuple[Tensor, Tensor | None]:
        """``(b, n, *input_shape)`` images; ``(b, n, classes)`` labels before `relaxed`, or None."""

    def rates(self, knowledge: Knowledge) -> dict[str, float]:
        """Name to the unit of a learning rate; 0 for variables that stay as drawn."""

    def box(self, knowledge: Knowledge) -> dict[str, tuple[float, float]]:
        """Name to lowest and highest value, for variables with bounds."""
        return {}

    def penalty(self, unknowns: Unknowns) -> Tensor:
        """``(b,)``: an addition to the objective, beside cost and priors."""
        first = next(iter(unknowns.values()))
        return first.new_zeros(len(first))


@checked
class Pixels(Parametrisation):
    """The images themselves.

    Attributes:
        start: ``normal``: around the middle of the bounds, with a quarter of their width as
            deviation. ``standard``: mean 0 and deviation 1 for any bounds, as in DLG. ``uniform``:
            between the bounds.

    Example:
        >>> Pixels().shapes(Knowledge("oblivious", input_shape=(1, 28, 28), classes=10, batch=4))
        {'images': (4, 1, 28, 28)}

    """

    start: Start = "normal"
    makes_labels = False

    def shapes(self, knowledge: Knowledge) -> dict[str, tuple[int, ...]]:
        """One variable."""
        return {"images": (knowledge.batch, *knowledge.input_shape)}

    def draw(self, count: int, knowledge: Knowledge, generator: Generator) -> dict[str, Tensor]:
        """Noise."""
        low, high = knowledge.bounds
        shape = (count, knowledge.batch, *knowledge.input_shape)
        if self.start == "uniform":
            draw = torch.rand(shape, generator=generator, device=generator.device)
            return {"images": low + (high - low) * draw}
        draw = torch.randn(shape, generator=generator, device=generator.device)
        if self.start == "standard":
            return {"images": draw}
        return {"images": (low + high) / 2 + (high - low) / 4 * draw}

    def decode(self, unknowns: Unknowns, knowledge: Knowledge) -> tuple[Tensor, Tensor | None]:
        """Unchanged."""
        return unknowns["images"], None

    def rates(self, knowledge: Knowledge) -> dict[str, float]:
        """About the deviation by which published attacks normalise their pixels."""
        low, high = knowledge.bounds
        return {"images": (high - low) / 4}

    def box(self, knowledge: Knowledge) -> dict[str, tuple[float, float]]:
        """The bounds."""
        return {"images": knowledge.bounds}
