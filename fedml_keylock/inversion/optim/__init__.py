"""Optimisers for many independent candidates at once, each a row of one matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

__all__ = ["BatchedOptimizer"]


class BatchedOptimizer(ABC):
    """The interface of an optimiser in the search.

    Attributes:
        stopped: ``(b,)`` rows that will not move again; empty before the first step.
        ROWS: names of the attributes that hold a row for each candidate.

    """

    ROWS: ClassVar[tuple[str, ...]] = ("stopped",)

    def __init__(self) -> None:
        for name in self.ROWS:
            setattr(self, name, torch.empty(0))
        self.stopped: Tensor

    @abstractmethod
    def step(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The next ``(b, d)`` iterate, from this one and the gradient at it."""

    def select(self, rows: Tensor) -> None:
        """Keep only these rows."""
        for name in self.ROWS:
            setattr(self, name, getattr(self, name)[rows])

    def state(self) -> dict[str, Tensor]:
        """Its whole state, for a checkpoint."""
        return {name: getattr(self, name) for name in self.ROWS}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue from a state."""
        for name in self.ROWS:
            setattr(self, name, state[name])
