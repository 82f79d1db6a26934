"""Adam for a batch of independent candidates, each a row of one matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import BatchedOptimizer

__all__ = ["BatchedAdam"]


class BatchedAdam(BatchedOptimizer):
    """Adam (Kingma and Ba 2015, algorithm 1) within a box, with a learning rate for each column.

    Args:
        learning_rate: ``(d,)``.
        signed: ``(d,)`` booleans: columns for which Adam sees only the gradient's sign.
        low: ``(d,)`` lower bounds; every iterate is clamped to them.
        high: ``(d,)`` upper bounds.
        milestones: after each of these many steps every learning rate falls to a tenth.

    Example:
        >>> x = torch.tensor([[3.0, -2.0]])
        >>> adam = BatchedAdam(
        ...     torch.tensor([0.1, 0.2]),
        ...     signed=torch.tensor([True, False]),
        ...     low=torch.tensor([0.0, -1.9]),
        ...     high=torch.tensor([9.0, 9.0]),
        ... )
        >>> adam.step(x, x)
        tensor([[ 2.9000, -1.8000]])

    """

    ROWS = ("stopped", "mean", "square")
    mean: Tensor
    square: Tensor

    def __init__(
        self,
        learning_rate: Tensor,
        *,
        signed: Tensor,
        low: Tensor,
        high: Tensor,
        milestones: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.signed = signed
        self.low, self.high = low, high
        self.milestones = tuple(milestones)
        self.count = 0

    def step(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The next ``(b, d)`` iterate, from this one and the gradient at it."""
        gradient = torch.where(self.signed, gradient.sign(), gradient)
        if self.count == 0:
            self.mean, self.square = torch.zeros_like(x), torch.zeros_like(x)
            self.stopped = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        rate = self.learning_rate * 0.1 ** sum(self.count >= at for at in self.milestones)
        self.count += 1
        self.mean = torch.lerp(self.mean, gradient, 0.1)
        self.square = torch.lerp(self.square, gradient * gradient, 0.001)
        mean = self.mean / (1 - 0.9**self.count)
        square = self.square / (1 - 0.999**self.count)
        return (x - rate * mean / (square.sqrt() + 1e-8)).clamp(self.low, self.high)

    def state(self) -> dict[str, Tensor]:
        """Its whole state."""
        return super().state() | {"count": torch.tensor(self.count)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue from a state."""
        super().load(state)
        self.count = int(state["count"])
