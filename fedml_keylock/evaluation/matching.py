"""Matches a batch's reconstructions to the truth: a gradient does not hold the batch's order."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..errors import ConfigError

__all__ = ["check_pair", "match"]


def match(images: Tensor, truth: Tensor) -> Tensor:
    """Assign reconstructions to the truth at the least total squared error.

    Both are images ``(n, c, h, w)``, clamped to [0, 1], or rows ``(n, features)`` of a table, not
    clamped. Returns indices ``(n,)``: ``images[match(images, truth)]`` has the truth's order.

    Raises:
        ConfigError: the shapes differ or are of neither images nor rows, or a value is not finite.

    Example:
        >>> x = torch.arange(3.0).reshape(3, 1, 1, 1) / 2
        >>> match(x[[2, 0, 1]], x)
        tensor([1, 2, 0])

    """
    check_pair(images, truth, images.ndim in (2, 4), "(n, c, h, w), or rows (n, features)")
    left, right = truth.detach().double(), images.detach().double()
    if images.ndim == 4:
        left, right = left.clamp(0, 1).flatten(1), right.clamp(0, 1).flatten(1)
    _, order = linear_sum_assignment(torch.cdist(left, right).square().cpu().numpy())
    return torch.as_tensor(order, device=images.device)


def check_pair(images: Tensor, truth: Tensor, fits: bool, shape: str) -> None:
    """Raise ConfigError if a value is not finite, or the shapes differ or do not fit."""
    if images.shape != truth.shape or not fits:
        raise ConfigError(
            f"images and truth must both be {shape}, not "
            f"{tuple(images.shape)} and {tuple(truth.shape)}"
        )
    if not (images.isfinite().all() and truth.isfinite().all()):
        raise ConfigError("images and truth must be finite: a pixel is NaN or infinite")
