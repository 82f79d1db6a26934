"""Labels from how often each class occurs."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import AttackError

__all__ = ["labels_of_counts"]


def labels_of_counts(counts: Tensor) -> Tensor:
    """Sorted labels ``(u, n)`` from how often each class occurs: ``(u, classes)`` integers.

    Raises:
        AttackError: a count is below 0, or the rows do not sum to the same n.

    Example:
        >>> labels_of_counts(torch.tensor([[2, 0, 1], [0, 3, 0]]))
        tensor([[0, 0, 2],
                [1, 1, 1]])

    """
    sums = counts.sum(1)
    if (counts < 0).any() or (sums != sums[:1]).any():
        raise AttackError("counts must not be below 0 and must sum to the same batch in every row")
    updates, classes = counts.shape
    labels = torch.arange(classes, device=counts.device).repeat(updates)
    return labels.repeat_interleave(counts.flatten()).view(updates, -1)
