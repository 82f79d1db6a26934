"""Which reconstruction is of which image or row: a batch's gradient does not know its order."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..errors import ConfigError

__all__ = ["check_pair", "match"]


def match(images: Tensor, truth: Tensor) -> Tensor:
    """Pair a batch's reconstructions with the truth at the least total squared error.

    Both are images ``(n, c, h, w)``, on [0, 1] once clamped; or rows ``(n, features)`` of a
    table, taken as they are. Gives ``(n,)`` indices: ``images[match(images, truth)]`` is in the
    truth's order.

    Raises:
        ConfigError: the shapes differ or are not those of images or rows, or a value is not finite.

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
    """Refuse, by a ConfigError, what is not finite or of another shape than that which fits."""
    if images.shape != truth.shape or not fits:
        raise ConfigError(
            f"images and truth must both be {shape}, not "
            f"{tuple(images.shape)} and {tuple(truth.shape)}"
        )
    if not (images.isfinite().all() and truth.isfinite().all()):
        raise ConfigError("images and truth must be finite: a pixel is NaN or infinite")
