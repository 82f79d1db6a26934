"""Optimisers over many independent candidates at once, each a row of one matrix."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

__all__ = ["BatchedOptimizer"]


class BatchedOptimizer(Protocol):
    """What the search needs of an optimiser.

    Attributes:
        stopped: ``(b,)`` rows that will not move again.

    """

    stopped: Tensor

    def step(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The next ``(b, d)`` iterate, from this one and the gradient at it."""

    def select(self, rows: Tensor) -> None:
        """Go on with these rows only."""

    def state(self) -> dict[str, Tensor]:
        """All that it remembers, for a checkpoint."""

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from there."""
