"""Tells pictures of a single colour, in which there is nothing to recognise."""

from __future__ import annotations

from torch import Tensor

__all__ = ["flat_channels", "of_one_colour"]

LEAST = 2.5 / 255
"""Range of pixels up to which a channel is flat: JPEG may be off by one level to each side."""


def flat_channels(images: Tensor) -> Tensor:
    """Which channels have a single brightness: ``(..., c, h, w)`` on [0, 1] to ``(..., c)``.

    Example:
        >>> import torch
        >>> flat_channels(torch.stack([torch.full((8, 8), 0.5), torch.eye(8)]))
        tensor([ True, False])

    """
    return images.amax((-2, -1)) - images.amin((-2, -1)) <= LEAST


def of_one_colour(images: Tensor) -> Tensor:
    """Which images have a single colour: ``(..., c, h, w)`` on [0, 1] to ``(...)``.

    After alignment any reconstruction matches such an image.

    Example:
        >>> import torch
        >>> of_one_colour(torch.stack([torch.full((3, 8, 8), 0.5), torch.rand(3, 8, 8)]))
        tensor([ True, False])

    """
    return flat_channels(images).all(-1)
