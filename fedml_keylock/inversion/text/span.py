"""Computes the space that a linear layer's gradient spans, which contains the layer's inputs."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Span", "span_of"]

_GAP = 10.0
"""Least ratio of two successive singular values at which a rank is recognised."""
_LEAST = 1e-5
"""The rounding of an input itself."""


class Span:
    """A subspace of inputs, found in gradients.

    Attributes:
        basis: ``(rank, width)``, orthonormal.
        blur: the gradients' rounding relative to the weakest input: the largest error of inputs.

    """

    def __init__(self, basis: Tensor, blur: float) -> None:
        self.basis, self.blur = basis, blur

    @property
    def rank(self) -> int:
        """The number of inputs, if they were fewer than the width."""
        return len(self.basis)

    def distance(self, inputs: Tensor) -> Tensor:
        """Relative distance of inputs ``(..., width)`` from the span: ``(...)``."""
        inputs = inputs.to(self.basis)
        rest: Tensor = inputs - (inputs @ self.basis.T) @ self.basis
        size: Tensor = inputs.norm(dim=-1).clamp(min=torch.finfo(inputs.dtype).tiny)
        distance: Tensor = rest.norm(dim=-1) / size
        return distance

    def tolerance(self, most: float) -> float:
        """The largest distance at which an input counts as contained: at most ``most``."""
        return min(most, max(_LEAST, self.blur))


def span_of(rows: Tensor) -> Span:
    """The span of rows, without their rounding errors.

    The rank is where the singular values fall most: a gradient's rounding errors have full rank,
    and no one tolerance suits every gradient. It is full if they fall nowhere by a factor of ten.

    From rows ``(m, width)`` in their own precision, a basis in double precision.

    Example:
        >>> rows = torch.tensor([[1.0, 0, 0], [0, 2, 0], [1, 2, 1e-6]])
        >>> span_of(rows).rank
        2
        >>> (span_of(rows).distance(torch.tensor([[3.0, 4, 0], [0, 3, 4]])) < 1e-5).tolist()
        [True, False]

    """
    _, values, basis = torch.linalg.svd(rows.double(), full_matrices=False)
    # below the rounding of the largest value, falls mean nothing
    floor = values[:1] * torch.finfo(rows.dtype).eps / 10
    values = values.clamp(min=torch.maximum(floor, floor.new_tensor(1e-300)))
    falls = values[:-1] / values[1:]
    if not len(falls) or falls.max() < _GAP:
        return Span(basis, 0.0)
    last = int(falls.argmax())
    return Span(basis[: last + 1], 1 / float(falls[last]))
