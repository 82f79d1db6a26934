"""RMSprop for a batch of independent candidates, each a row of one matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from . import BatchedOptimizer

__all__ = ["BatchedRMSprop"]


class BatchedRMSprop(BatchedOptimizer):
    """RMSprop like ``torch.optim.RMSprop``, with a learning rate for each column.

    Args:
        learning_rate: ``(d,)``.
        momentum: of the scaled gradients.

    Example:
        >>> x = torch.tensor([[3.0, -2.0]])
        >>> BatchedRMSprop(torch.tensor([0.1, 0.2])).step(x, x)
        tensor([[ 2.0000e+00, -1.1921e-07]])

    """

    ROWS = ("stopped", "square", "buffer")
    square: Tensor
    buffer: Tensor

    def __init__(self, learning_rate: Tensor, *, momentum: float = 0.0) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.momentum = momentum

    def step(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The next ``(b, d)`` iterate, from this one and the gradient at it."""
        if not len(self.stopped):
            self.square, self.buffer = torch.zeros_like(x), torch.zeros_like(x)
            self.stopped = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.square.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
        self.buffer.mul_(self.momentum).addcdiv_(gradient, self.square.sqrt().add_(1e-8))
        return x - self.learning_rate * self.buffer
