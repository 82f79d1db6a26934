"""Whether there is anything in a picture that could be recognised."""

from __future__ import annotations

from torch import Tensor

__all__ = ["flat_channels", "of_one_colour"]

LEAST = 2.5 / 255
"""Between the darkest and the brightest pixel: a JPEG may be off by a level to each side."""


def flat_channels(images: Tensor) -> Tensor:
    """Which channels are of one brightness: ``(..., c, h, w)`` on [0, 1] to ``(..., c)``.

    Example:
        >>> import torch
        >>> flat_channels(torch.stack([torch.full((8, 8), 0.5), torch.eye(8)]))
        tensor([ True, False])

    """
    return images.amax((-2, -1)) - images.amin((-2, -1)) <= LEAST


def of_one_colour(images: Tensor) -> Tensor:
    """Which images are of one colour: ``(..., c, h, w)`` on [0, 1] to ``(...)``.

    Once its brightness is aligned, any reconstruction of such an image is right.

    Example:
        >>> import torch
        >>> of_one_colour(torch.stack([torch.full((3, 8, 8), 0.5), torch.rand(3, 8, 8)]))
        tensor([ True, False])

    """
    return flat_channels(images).all(-1)
