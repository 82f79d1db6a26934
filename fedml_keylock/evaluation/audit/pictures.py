"""Reads a folder of pictures as images and labels."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ...errors import ConfigError, first_line
from ..contrast import of_one_colour

__all__ = ["load_pictures"]

SUFFIXES = (".png", ".jpg", ".jpeg")
HIDDEN = (".", "__MACOSX", "@eaDir")
"""Prefixes of files that editors, systems and archives leave among pictures."""


def load_pictures(
    folder: Path,
    *,
    size: tuple[int, int],
    channels: int,
    labels: Path | None = None,
    limit: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Tensor, Tensor]:
    """Read pictures, alternating between classes, so that a few pictures cover many classes.

    Pictures are turned upright and cropped to their centre; of an animation the first frame is
    read. Grey of 16 bits keeps its depth. Transparent pictures are put on white. Pictures of a
    single colour are left out: after alignment any reconstruction matches them.

    Args:
        folder: has a sub-folder of PNG or JPEG files for each class; classes are numbered by name,
            as in torchvision's ImageFolder. Or, with ``labels``, the files themselves. Hidden files
            and folders are ignored.
        size: height and width in pixels to which pictures are resized.
        channels: 1 for grey, 3 for colour.
        labels: a CSV file of two columns: a picture's name and the number of its class.
        limit: largest number of pictures.
        say: called with a line on every change to pictures.

    Returns:
        Images ``(n, c, h, w)`` on [0, 1], and labels ``(n,)``.

    Raises:
        ConfigError: the folder has no pictures, or one cannot be read.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("cat", "dog"):
        ...     (folder / name).mkdir()
        ...     Image.linear_gradient("L").save(folder / name / "1.png")
        >>> images, labels = load_pictures(folder, size=(16, 16), channels=1)
        >>> images.shape, labels, round(float(images.mean()), 1)
        (torch.Size([2, 1, 16, 16]), tensor([0, 1]), 0.5)

    """
    if channels not in (1, 3):
        raise ConfigError(f"pictures have 1 or 3 channels, and the model wants {channels}")
    if not folder.is_dir():
        raise ConfigError(f"--data {folder}: no such folder")
    classes = _by_file(folder, _read_labels(labels)) if labels else _by_folder(folder, say)
    queues = [[(path, number) for path in sorted(classes[number])] for number in sorted(classes)]
    order = [one for turn in zip_longest(*queues) for one in turn if one is not None]
    images: list[Tensor] = []
    numbers: list[int] = []
    flat, transparent = 0, 0
    for path, number in order:
        if len(images) == limit:
            break
        image, is_transparent = _read(path, size, channels)
        if bool(of_one_colour(image)):
            flat += 1
            continue
        transparent += is_transparent
        images.append(image)
        numbers.append(number)
    if not images:
        raise ConfigError(
            f"--data {folder}: every picture is of one colour, of which any reconstruction is "
            "right once its brightness is aligned"
        )
    if flat:
        say(f"{folder}: {flat} of {flat + len(images)} pictures are of one colour, and left out")
    if transparent:
        say(f"{folder}: {transparent} of {len(images)} pictures are transparent, and put on white")
    return torch.stack(images), torch.tensor(numbers)


def _by_folder(folder: Path, say: Callable[[str], None]) -> dict[int, list[Path]]:
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not _is_hidden(path))
    every = {number: _pictures(path) for number, path in enumerate(folders)}
    found = {number: paths for number, paths in every.items() if paths}
    if not found and _pictures(folder):
        raise ConfigError(
            f"--data {folder}: pictures need a class: put them into a sub-folder for each, or give "
            "--labels FILE, a CSV of lines like `cat.png,3`"
        )
    if not found:
        raise ConfigError(f"--data {folder}: there are no {', '.join(SUFFIXES)} files in it")
    empty = [f"{path.name} ({n})" for n, path in enumerate(folders) if n not in found]
    if empty:
        say(f"{folder}: no pictures of class {', '.join(empty)}; the others keep their numbers")
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
    return [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and path.is_file() and not _is_hidden(path)
    ]


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(HIDDEN)


def _read(path: Path, size: tuple[int, int], channels: int) -> tuple[Tensor, bool]:
    """A picture ``(c, h, w)``, and whether it has transparent pixels."""
    try:
        with Image.open(path, formats=["PNG", "JPEG"]) as opened:
            upright = ImageOps.exif_transpose(opened)
            grey16 = upright.mode.startswith("I")  # Pillow reduces other pictures of 16 bits to 8
            if grey16:
                picture, is_transparent = _from_16_bits(upright)
            else:
                picture, is_transparent = _on_white(upright)
                picture = picture.convert("L" if channels == 1 else "RGB")
            fitted = ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.BILINEAR)
    # for damaged files Pillow raises SyntaxError and ValueError too
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ConfigError(
            f"--data {path}: cannot be read as a PNG or JPEG: {first_line(error)}"
        ) from None
    pixels = torch.from_numpy(np.array(fitted)).float()
    if not grey16:
        pixels /= 255
    if pixels.ndim == 2:
        return pixels.expand(channels, *size).clone(), is_transparent
    return pixels.permute(2, 0, 1).contiguous(), is_transparent


def _from_16_bits(picture: Image.Image) -> tuple[Image.Image, bool]:
    """Grey of 16 bits on [0, 1]; transparent pixels become white."""
    values = np.array(picture)
    clear = values == picture.info.get("transparency", -1)
    on_unit = np.where(clear, 1.0, values / np.float32(2**16 - 1))
    return Image.fromarray(on_unit.astype(np.float32)), bool(clear.any())


def _on_white(picture: Image.Image) -> tuple[Image.Image, bool]:
    """The picture on a white background."""
    if not picture.has_transparency_data:
        return picture, False
    colours = picture.convert("RGBA")
    if colours.getchannel("A").getextrema()[0] == 255:
        return picture, False
    white = Image.new("RGBA", colours.size, "white")
    return Image.alpha_composite(white, colours), True
