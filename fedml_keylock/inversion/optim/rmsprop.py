"""RMSprop over a batch of independent candidates, each a row of one matrix."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["BatchedRMSprop"]


class BatchedRMSprop:
    """RMSprop as ``torch.optim.RMSprop`` has it, with a learning rate for each column.

    Args:
        learning_rate: ``(d,)``.
        momentum: of the scaled gradients.

    Example:
        >>> x = torch.tensor([[3.0, -2.0]])
        >>> BatchedRMSprop(torch.tensor([0.1, 0.2])).step(x, x)
        tensor([[ 2.0000e+00, -1.1921e-07]])

    """

    def __init__(self, learning_rate: Tensor, *, momentum: float = 0.0) -> None:
        self.learning_rate = learning_rate
        self.momentum = momentum
        self._square = torch.empty(0)
        self._buffer = torch.empty(0)
        self.stopped = torch.empty(0)  # (b,) rows that will not move again: never

    def step(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The next ``(b, d)`` iterate, from this one and the gradient at it."""
        if not len(self.stopped):
            self._square, self._buffer = torch.zeros_like(x), torch.zeros_like(x)
            self.stopped = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self._square.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
        self._buffer.mul_(self.momentum).addcdiv_(gradient, self._square.sqrt().add_(1e-8))
        return x - self.learning_rate * self._buffer

    def select(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self._square, self._buffer = self._square[rows], self._buffer[rows]
        self.stopped = self.stopped[rows]

    def state(self) -> dict[str, Tensor]:
        """All that it remembers."""
        return {"square": self._square, "buffer": self._buffer, "stopped": self.stopped}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from there."""
        self._square, self._buffer = state["square"], state["buffer"]
        self.stopped = state["stopped"]
