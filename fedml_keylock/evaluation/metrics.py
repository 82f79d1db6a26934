"""Image metrics: how close a reconstruction is to the truth.

Every metric takes reconstructions and the truth in the same order, both ``(n, c, h, w)`` on [0, 1].
Reconstructions are clamped to that range. A metric returns ``(n,)`` values. It raises ConfigError
if the shapes differ or are not of images, or a value is not finite.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from ..errors import ConfigError
from .contrast import flat_channels, of_one_colour
from .leakage import WINDOW
from .matching import check_pair

__all__ = ["align", "psnr", "psnr_aligned", "ssim", "ssim_aligned"]

_MOST_DECIBELS = 100.0


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, ``10 log10(1 / MSE)``, after clamping the images to [0, 1].

    In decibels, capped at 100: the ratio of an exact copy is infinite.

    Example:
        >>> psnr(torch.full((1, 1, 16, 16), 0.6), torch.full((1, 1, 16, 16), 0.5)).round()
        tensor([20.])

    """
    images, truth = _checked(images, truth)
    values = peak_signal_noise_ratio(images, truth, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return values.clamp(max=_MOST_DECIBELS)


def ssim(images: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004), Gaussian window of 11, after clamping to [0, 1].

    From -1 to 1, where 1 is an exact copy. The mean over windows that lie within the picture, as in
    the paper and in scikit-image; torchmetrics' own mean includes a reflected border.

    Raises:
        ConfigError: as for every metric, or the images are smaller than the window.

    Example:
        >>> x = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> ssim(x, x)
        tensor([1., 1.])

    """
    images, truth = _checked(images, truth)
    if min(images.shape[-2:]) < WINDOW:
        raise ConfigError(
            f"SSIM needs images of at least {WINDOW} x {WINDOW}, not {tuple(images.shape[-2:])}"
        )
    _, windows = structural_similarity_index_measure(
        images, truth, data_range=1.0, reduction="none", return_full_image=True
    )
    border = WINDOW // 2
    return windows[..., border:-border, border:-border].mean((1, 2, 3))


def align(images: Tensor, truth: Tensor) -> Tensor:
    """Fit each channel to the truth by a scale and an offset (least squares).

    A person recognises a picture at wrong contrast and brightness. A scale may be negative: a
    photographic negative is recognised too. Returns images ``(n, c, h, w)`` on [0, 1].

    Example:
        >>> x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> bool((align(0.5 - 0.4 * x, x) - x).abs().max() < 1e-5)
        True

    """
    images, truth = _checked(images, truth)
    centred = images - images.mean((2, 3), keepdim=True)
    mean = truth.mean((2, 3), keepdim=True)
    square = (centred * centred).sum((2, 3), keepdim=True)
    product = (centred * (truth - mean)).sum((2, 3), keepdim=True)
    # a channel without contrast has no scale, only an offset
    scale = torch.where(square > 1e-12, product / square.clamp(min=1e-12), 0)
    return (scale * centred + mean).clamp(0, 1)


def psnr_aligned(images: Tensor, truth: Tensor) -> Tensor:
    """``psnr`` after ``align``: ``(n,)`` decibels. NaN if the truth has a single colour.

    Example:
        >>> x = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> bool(psnr_aligned(0.2 + 0.5 * x, x) > 60)
        True

    """
    return psnr(align(images, truth), truth).masked_fill(of_one_colour(truth), torch.nan)


def ssim_aligned(images: Tensor, truth: Tensor) -> Tensor:
    """``ssim`` after ``align``: ``(n,)``, over the channels in which the truth has contrast.

    NaN if it has contrast in none: once aligned, anything matches a picture of a single colour.

    Example:
        >>> x = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> bool(ssim_aligned(0.2 + 0.5 * x, x) > 0.999)
        True

    """
    single = [part.flatten(0, 1)[:, None] for part in (align(images, truth), truth)]
    channels = ssim(*single).reshape(truth.shape[:2])
    return channels.masked_fill(flat_channels(truth), torch.nan).nanmean(1)


def _checked(images: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    check_pair(images, truth, images.ndim == 4 and len(images) > 0, "(n, c, h, w)")
    return images.detach().float().clamp(0, 1), truth.detach().float().clamp(0, 1)
