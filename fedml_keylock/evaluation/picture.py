"""Draws a report's pictures: single images for the page, and the overview as one PNG."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO

import torch
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from torch import Tensor
from torch.nn.functional import interpolate, pad

from ..errors import ConfigError

__all__ = ["check_images", "data_uris", "overview_png"]

_NARROW, _WIDE, _MARGIN, _GAP, _LABEL, _DPI = 640, 1200, 24, 6, 34, 100  # pixels, and per inch
_LARGEST, _MOST_IN_A_LINE = 112, 16


def check_images(name: str, images: Tensor) -> None:
    """Check that images can be shown: ``(n, c, h, w)``, finite, c 1 or 3.

    Raises:
        ConfigError: they cannot; names them and the fault.

    Example:
        >>> check_images("originals", torch.rand(2, 3, 8, 8))

    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[1:]:
        raise ConfigError(f"{name} must be (n, 1 or 3, h, w), not {tuple(images.shape)}")
    if not images.isfinite().all():
        raise ConfigError(f"{name}: a pixel is NaN or infinite")


def data_uris(images: Tensor) -> list[str]:
    """Encode each image of ``(n, c, h, w)``, clamped to [0, 1], as a PNG data URI.

    Example:
        >>> data_uris(torch.rand(1, 1, 8, 8))[0][:22]
        'data:image/png;base64,'

    """
    uris = []
    for image in _bytes(images):
        file = BytesIO()
        imsave(file, image.expand(3, -1, -1).permute(1, 2, 0).numpy(), format="png")
        uris.append(f"data:image/png;base64,{b64encode(file.getvalue()).decode()}")
    return uris


def overview_png(originals: Tensor, rows: Sequence[tuple[str, Tensor]]) -> bytes:
    """Draw the originals, and below them one labelled row for each gallery.

    All are ``(n, c, h, w)`` on [0, 1]; if n is 0, the picture says so. Of more than 16 the first
    16 are shown, and each title says so.

    Example:
        >>> overview_png(torch.rand(2, 1, 8, 8), [("dlg", torch.rand(2, 1, 8, 8))])[1:4]
        b'PNG'

    """
    shown = min(len(originals), _MOST_IN_A_LINE)
    part = f" (the first {shown} of {len(originals)})" if shown < len(originals) else ""
    lines = [("originals" + part, originals[:shown])]
    lines += [(title + part, images[:shown]) for title, images in rows]
    strips = [(title, _strip(images, shown)) for title, images in lines if shown]
    if not strips:
        strips = [("Nothing was attacked: there are no pictures.", torch.ones(1, 1, 3))]
    width = max(_NARROW, 2 * _MARGIN + strips[0][1].shape[1])
    height = 2 * _MARGIN + sum(_LABEL + len(strip) + 2 * _GAP for _, strip in strips)
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)  # sets the figure's canvas, without a display or global state
    top = height - _MARGIN
    for title, strip in strips:
        top -= _LABEL
        figure.text(
            _MARGIN / width,
            (top + _GAP + 3) / height,
            title if len(title) < width / 10 else f"{title[: width // 10 - 3]}...",
            fontsize=13,
            color="#1b1b1b",
            parse_math=False,
        )
        top -= len(strip)
        figure.figimage(strip.numpy(), _MARGIN, top, origin="upper")
        top -= 2 * _GAP
    file = BytesIO()
    with rc_context({"savefig.bbox": "standard"}):  # a user's matplotlib settings may crop
        figure.savefig(file, format="png", dpi=_DPI)
    return file.getvalue()


def _strip(images: Tensor, columns: int) -> Tensor:
    """``(height, width, 3)`` on [0, 1]: the images beside each other, enlarged without blurring."""
    height, width = images.shape[-2:]
    most = (_WIDE - 2 * _MARGIN - (columns - 1) * _GAP) / columns
    scale = min(most, _LARGEST) / max(height, width)
    size = (max(round(height * scale), 1), max(int(width * scale), 1))
    large = interpolate(_bytes(images).float() / 255, size=size, mode="nearest-exact")
    spaced = pad(large.expand(-1, 3, -1, -1), (0, _GAP), value=1.0)
    return torch.cat(list(spaced), dim=2).permute(1, 2, 0)


def _bytes(images: Tensor) -> Tensor:
    return (images.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
