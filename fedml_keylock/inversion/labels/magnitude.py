"""Recovers a batch's labels by the magnitude of each label's part of the head's gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from .head import check_gradients, labels_of_counts

__all__ = ["labels_by_magnitude"]


def labels_by_magnitude(weight: Tensor, bias: Tensor | None, batch: int) -> Tensor:
    """Labels one by one, subtracting each label's expected part from the gradient.

    Wainakh et al., "User-level label leakage from gradients", PoPETs 2022(2) (arXiv 2105.09369),
    the attack named LLG, which has only the shared gradient. With ``g`` the row sums of the
    weight's gradient and C classes, the impact of one label is ``m = (1 + 1/C) / n`` times the sum
    of the negative ``g``. The offset s, which the paper's stronger attackers measure on the model
    or on other data, is 0. Every class with a negative ``g`` is taken once; then, until there are
    n, the class with the smallest ``g``. m is subtracted whenever a class is taken.

    It assumes that the head's inputs are not negative, and of similar size in all images, and that
    the model is untrained. Labels may repeat. m is too small when many of the classes are present,
    since a present class whose ``g`` is not negative adds nothing to it.

    For arguments, results and errors see ``RECOVERIES``; the bias is not used.

    Example:
        >>> gradient = torch.tensor([[[-0.4, -0.5], [0.3, 0.3], [0.3, 0.3], [-0.2, -0.1]]])
        >>> labels_by_magnitude(gradient, None, 3)
        tensor([[0, 0, 3]])

    """
    check_gradients(weight, bias, batch)
    left = weight.sum(2)
    updates, classes = left.shape
    impact = left.clamp(max=0).sum(1) / batch * (1 + 1 / classes)
    negative = left < 0
    counts = torch.zeros_like(left, dtype=torch.long)
    rows = torch.arange(updates, device=left.device)
    for _ in range(batch):
        fresh = negative & (counts == 0)
        allowed = fresh | ~fresh.any(1, keepdim=True)
        label = left.masked_fill(~allowed, float("inf")).argmin(1)
        counts[rows, label] += 1
        left[rows, label] -= impact
    return labels_of_counts(counts)
