"""What pictures look like, as far as an attacker can know it without data."""

from __future__ import annotations

from torch import Tensor

__all__ = ["total_variation"]


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference between neighbouring pixels (Geiping et al. 2020, section 4).

    Args:
        images: ``(b, n, c, h, w)``: b candidates of n images.

    Returns:
        ``(b,)`` vertical plus horizontal mean, in the pixels' own unit.

    Example:
        >>> import torch
        >>> total_variation(torch.eye(2).reshape(1, 1, 1, 2, 2))
        tensor([2.])

    """
    across = (images[..., :, 1:] - images[..., :, :-1]).abs().flatten(1).mean(1)
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().flatten(1).mean(1)
    return across + down
