"""The space that a linear layer's gradient spans: inputs lie in it, and little else does."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Span", "span_of"]

_GAP = 10.0
"""How many times a singular value must be the next one, for a rank to be told."""
_LEAST = 1e-5
"""The rounding of an input itself."""


class Span:
    """A subspace of inputs, found in gradients.

    Attributes:
        basis: ``(rank, width)``, orthonormal.
        blur: the gradients' rounding beside the weakest input: inputs are off by less.

    """

    def __init__(self, basis: Tensor, blur: float) -> None:
        self.basis, self.blur = basis, blur

    @property
    def rank(self) -> int:
        """How many inputs it was made of, if they were fewer than the width."""
        return len(self.basis)

    def distance(self, inputs: Tensor) -> Tensor:
        """How far inputs ``(..., width)`` are from it, relative to their size: ``(...)``."""
        inputs = inputs.to(self.basis)
        rest: Tensor = inputs - (inputs @ self.basis.T) @ self.basis
        size: Tensor = inputs.norm(dim=-1).clamp(min=torch.finfo(inputs.dtype).tiny)
        distance: Tensor = rest.norm(dim=-1) / size
        return distance

    def tolerance(self, most: float) -> float:
        """The distance up to which an input is taken to lie in it: no more than ``most``."""
        return min(most, max(_LEAST, self.blur))


def span_of(rows: Tensor) -> Span:
    """The span of rows, without their rounding.

    The rank is where the singular values fall most: a gradient's rounding has a full rank, and a
    tolerance that suits one gradient does not suit another. It is full where they fall nowhere by
    ten times.

    From rows ``(m, width)`` in their own precision, a basis in double precision.

    Example:
        >>> rows = torch.tensor([[1.0, 0, 0], [0, 2, 0], [1, 2, 1e-6]])
        >>> span_of(rows).rank
        2
        >>> (span_of(rows).distance(torch.tensor([[3.0, 4, 0], [0, 3, 4]])) < 1e-5).tolist()
        [True, False]

    """
    _, values, basis = torch.linalg.svd(rows.double(), full_matrices=False)
    # what is below the rounding of the greatest has no falls that say anything
    floor = values[:1] * torch.finfo(rows.dtype).eps / 10
    values = values.clamp(min=torch.maximum(floor, floor.new_tensor(1e-300)))
    falls = values[:-1] / values[1:]
    if not len(falls) or falls.max() < _GAP:
        return Span(basis, 0.0)
    last = int(falls.argmax())
    return Span(basis[: last + 1], 1 / float(falls[last]))
