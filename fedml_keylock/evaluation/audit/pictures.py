"""A folder of pictures as images and labels."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ...errors import ConfigError

__all__ = ["load_pictures"]

SUFFIXES = (".png", ".jpg", ".jpeg")


def load_pictures(
    folder: Path,
    *,
    size: tuple[int, int],
    channels: int,
    labels: Path | None = None,
    limit: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Read pictures, one class after the other in turn, so that a few of them are of many classes.

    Args:
        folder: with a sub-folder of PNG or JPEG files for each class, which are numbered in the
            order of their names; or, with ``labels``, with the files themselves.
        size: height and width to which they are brought.
        channels: 1 for grey, 3 for colour.
        labels: a CSV file of two columns: a picture's name and the number of its class.
        limit: pictures at the most.

    Returns:
        Images ``(n, c, h, w)`` on [0, 1], and labels ``(n,)``.

    Raises:
        ConfigError: the folder has no such pictures, or one cannot be read.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("cat", "dog"):
        ...     (folder / name).mkdir()
        ...     Image.new("L", (8, 8), 51).save(folder / name / "1.png")
        >>> images, labels = load_pictures(folder, size=(16, 16), channels=1)
        >>> images.shape, labels, round(float(images.mean()), 3)
        (torch.Size([2, 1, 16, 16]), tensor([0, 1]), 0.2)

    """
    if channels not in (1, 3):
        raise ConfigError(f"pictures have 1 or 3 channels, and the model wants {channels}")
    if not folder.is_dir():
        raise ConfigError(f"--data {folder}: no such folder")
    classes = _by_file(folder, _read_labels(labels)) if labels else _by_folder(folder)
    queues = [[(path, number) for path in sorted(classes[number])] for number in sorted(classes)]
    order = [one for turn in zip_longest(*queues) for one in turn if one is not None][:limit]
    images = torch.stack([_read(path, size, channels) for path, _ in order])
    return images, torch.tensor([number for _, number in order])


def _by_folder(folder: Path) -> dict[int, list[Path]]:
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    every = {number: _pictures(path) for number, path in enumerate(folders)}
    found = {number: paths for number, paths in every.items() if paths}
    if not found and _pictures(folder):
        raise ConfigError(
            f"--data {folder}: pictures need a class: put them into a sub-folder for each, or give "
            "--labels FILE, a CSV of lines like `cat.png,3`"
        )
    if not found:
        raise ConfigError(f"--data {folder}: there are no {', '.join(SUFFIXES)} files in it")
    return found


def _by_file(folder: Path, labels: Mapping[str, int]) -> dict[int, list[Path]]:
    found: dict[int, list[Path]] = {}
    for name, number in labels.items():
        if not (folder / name).is_file():
            raise ConfigError(f"--labels: {folder / name}: no such file")
        found.setdefault(number, []).append(folder / name)
    return found


def _read_labels(path: Path) -> dict[str, int]:
    labels = {}
    try:
        with path.open(newline="") as file:
            for number, line in enumerate(csv.reader(file), 1):
                if len(line) != 2 or not line[1].strip().isdigit():
                    raise ConfigError(f"--labels {path}, line {number}: not like `cat.png,3`")
                labels[line[0]] = int(line[1])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"--labels {path}: cannot be read: {error}") from None
    if not labels:
        raise ConfigError(f"--labels {path}: it is empty")
    return labels


def _pictures(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES]


def _read(path: Path, size: tuple[int, int], channels: int) -> Tensor:
    try:
        with Image.open(path, formats=["PNG", "JPEG"]) as opened:
            picture = opened.convert("L" if channels == 1 else "RGB")
            if size[0] == size[1]:  # the middle square, as classifiers are fed
                side = min(picture.size)
                left, top = (picture.width - side) // 2, (picture.height - side) // 2
                picture = picture.crop((left, top, left + side, top + side))
            picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            pixels = torch.from_numpy(np.array(picture)).float() / 255
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ConfigError(f"--data {path}: cannot be read as a PNG or JPEG: {error}") from None
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()
