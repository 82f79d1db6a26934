"""L-BFGS for a batch of independent candidates, each a row of one matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from . import BatchedOptimizer

__all__ = ["BatchedLBFGS"]


class BatchedLBFGS(BatchedOptimizer):
    """L-BFGS without line search on b rows at once, each row as ``torch.optim.LBFGS`` treats one.

    The two-loop recursion (Nocedal and Wright 2006, algorithm 7.4) runs over all rows together. The
    first step is ``min(1, 1 / |g|_1) * learning_rate`` along the gradient, every later one
    ``learning_rate`` along the direction.

    Args:
        learning_rate: length of a step, in directions.
        tolerance: at 1 like ``torch.optim.LBFGS``: a pair is stored if y.s exceeds 1e-10, and a row
            stops when no entry of its gradient exceeds 1e-7 or its direction promises less than
            1e-9. For a cost on another scale it multiplies all three.
        history: how many pairs are stored. A pair that a row rejects for its curvature takes a
            place without effect; ``torch.optim.LBFGS`` would keep an older one instead.

    Example:
        >>> x = torch.tensor([[3.0, -2.0], [1.0, 5.0]])
        >>> optimiser = BatchedLBFGS()
        >>> for _ in range(8):  # the gradient of |x|^2 / 2 is x
        ...     x = optimiser.step(x, x)
        >>> bool(x.abs().max() < 1e-4)
        True

    """

    ROWS = ("stopped", "scale", "moved", "gradient")
    scale: Tensor  # (b, 1) initial inverse Hessian
    moved: Tensor  # (b, d) the last step
    gradient: Tensor  # (b, d) before it

    def __init__(
        self, *, learning_rate: float = 1.0, tolerance: float = 1.0, history: int = 100
    ) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.tolerance = tolerance
        self.history = history
        self._pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # s (b, d), y (b, d), 1/ys (b, 1)

    def step(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The next ``(b, d)`` iterate, from this one and the gradient at it."""
        if not len(self.gradient):
            direction = -gradient
            size = gradient.abs().sum(1, keepdim=True)
            length = self.learning_rate * (1 / size).clamp(max=1)
            self.scale = torch.ones_like(size)
        else:
            self._remember(self.moved, gradient - self.gradient)
            direction = self._direction(gradient)
            length = torch.full_like(self.scale, self.learning_rate)
        slope = (gradient * direction).sum(1)
        self.stopped = slope > -1e-9 * self.tolerance
        self.stopped |= gradient.abs().amax(1) <= 1e-7 * self.tolerance
        self.gradient = gradient
        self.moved = torch.where(self.stopped[:, None], 0, length * direction)
        return x + self.moved

    def select(self, rows: Tensor) -> None:
        """Keep only these rows."""
        super().select(rows)
        self._pairs = [(s[rows], y[rows], inverse[rows]) for s, y, inverse in self._pairs]

    def state(self) -> dict[str, Tensor]:
        """Its whole state."""
        pairs = zip(("s", "y", "inverse"), zip(*self._pairs, strict=True), strict=False)
        return super().state() | {name: torch.stack(parts) for name, parts in pairs}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue from a state."""
        super().load(state)
        if "s" in state:
            self._pairs = list(zip(state["s"], state["y"], state["inverse"], strict=True))

    def _remember(self, s: Tensor, y: Tensor) -> None:
        curvature = (y * s).sum(1, keepdim=True)
        good = curvature > 1e-10 * self.tolerance
        # a rejected pair gets weight 0 in both loops; zeros keep its inf or NaN out of them
        s, y = torch.where(good, s, 0), torch.where(good, y, 0)
        inverse = torch.where(good, 1 / curvature, 0)
        self.scale = torch.where(good, curvature / (y * y).sum(1, keepdim=True), self.scale)
        self._pairs.append((s, y, inverse))
        if len(self._pairs) > self.history:
            self._pairs.pop(0)

    def _direction(self, gradient: Tensor) -> Tensor:
        direction = -gradient
        shares = []
        for s, y, inverse in reversed(self._pairs):
            share = (s * direction).sum(1, keepdim=True) * inverse
            direction = torch.addcmul(direction, share, y, value=-1)
            shares.append(share)
        direction = direction * self.scale
        for (s, y, inverse), share in zip(self._pairs, reversed(shares), strict=True):
            back = (y * direction).sum(1, keepdim=True) * inverse
            direction = torch.addcmul(direction, share - back, s)
        return direction
