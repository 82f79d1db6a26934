"""What the silos trained on: needed to score, and kept apart from what was captured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...errors import AttackError
from ...files import replacing

__all__ = ["Truth", "load_truth", "save_truth"]

Truth = dict[tuple[int, int], tuple[Tensor, Tensor]]
"""Round and silo to images ``(n, c, h, w)``, as the model was fed them, and integer labels."""

_KEY = re.compile(r"round-(\d+)/silo-(\d+)/(images|labels)")


def save_truth(path: Path, truth: Mapping[tuple[int, int], tuple[Tensor, Tensor]]) -> None:
    """Write what silos trained on in the rounds that were captured, for its owner's eyes only.

    Args:
        path: of a safetensors file, with entries such as ``round-00000/silo-0/images``.
        truth: see `Truth`.

    Raises:
        AttackError: it is not such data, or cannot be written.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "truth.safetensors"
        >>> save_truth(path, {(0, 1): (torch.rand(2, 1, 28, 28), torch.tensor([3, 4]))})
        >>> load_truth(path)[0, 1][1]
        tensor([3, 4])

    """
    tensors = {}
    for (round_index, silo), (images, labels) in truth.items():
        name = f"round-{round_index:05d}/silo-{silo}"
        _check(f"truth {path}: {name}", images, labels)
        tensors[f"{name}/images"] = images.detach().float().cpu().contiguous()
        tensors[f"{name}/labels"] = labels.detach().long().cpu().contiguous()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            save_file(tensors, part)
    except (OSError, SafetensorError) as error:
        raise AttackError(f"truth {path}: cannot be written: {error}") from None


def load_truth(path: Path) -> Truth:
    """Read what `save_truth` wrote. Nothing in the file is executed, whatever it is.

    Raises:
        AttackError: the file is missing, damaged, or not of this kind.

    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise AttackError(f"truth {path}: not a readable safetensors file: {error}") from None
    parts: dict[tuple[int, int], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _KEY.fullmatch(name)
        if match is None:
            raise AttackError(
                f"truth {path}: {name!r} is not like 'round-00000/silo-0/images' or '.../labels'"
            )
        parts.setdefault((int(match[1]), int(match[2])), {})[match[3]] = tensor
    if not parts:
        raise AttackError(f"truth {path}: it is empty")
    truth: Truth = {}
    for (round_index, silo), part in sorted(parts.items()):
        name = f"truth {path}: round-{round_index:05d}/silo-{silo}"
        if len(part) != 2:
            raise AttackError(f"{name} has no {'labels' if 'images' in part else 'images'}")
        _check(name, part["images"], part["labels"])
        truth[round_index, silo] = (part["images"].float(), part["labels"].long())
    return truth


def _check(name: str, images: Tensor, labels: Tensor) -> None:
    if images.ndim != 4 or not len(images) or not images.is_floating_point():
        raise AttackError(
            f"{name}: images are {images.dtype} {tuple(images.shape)}, not n, c, h, w"
        )
    if labels.shape != images.shape[:1] or labels.is_floating_point():
        raise AttackError(f"{name}: labels are {labels.dtype} {tuple(labels.shape)}, not one each")
    if not images.isfinite().all():
        raise AttackError(f"{name}: a pixel is not finite")
