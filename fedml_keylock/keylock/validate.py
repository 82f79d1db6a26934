"""Which layers of a model can be locked, where each lock goes, and why something cannot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise

from torch import nn

from ..errors import LockError
from .config import KeyLockConfig
from .module import KeyLock

__all__ = ["LockIssue", "Site", "check_model", "plan"]

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
CHANNELS_FIRST_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)


@dataclass(frozen=True)
class LockIssue:
    """Why a layer, or a whole model (layer ""), cannot be locked."""

    layer: str
    reason: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.reason}" if self.layer else self.reason


@dataclass(frozen=True)
class Site:
    """Where one lock goes.

    Attributes:
        layer: name of the convolution or linear layer that is locked.
        holder: name of the module that the lock hangs on: the normalisation behind the layer, or
            the layer itself where there is none.
        channels: how many channels the holder's output has.
        channel_dim: 1 or -1, where they are.
        normalise: the norm that the lock must bring: "batch", "layer" or None.

    """

    layer: str
    holder: str
    channels: int
    channel_dim: int
    normalise: str | None


def check_model(model: nn.Module, config: KeyLockConfig) -> list[LockIssue]:
    """Everything that stands against locking this model so; empty when it can be locked.

    Nothing is changed.

    Example:
        >>> check_model(nn.Sequential(nn.Linear(4, 2)), KeyLockConfig())[0].layer
        '0'
        >>> check_model(nn.Sequential(nn.Conv2d(1, 2, 3)), KeyLockConfig())
        []

    """
    if any(isinstance(module, KeyLock) for module in model.modules()):
        return [LockIssue("", "the model is locked already; unlock_model takes the lock out")]
    issues = [
        LockIssue(name, "its shape is not known before the first forward pass (a lazy module)")
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.lazy.LazyModuleMixin)
    ]
    if issues:
        return issues
    lockable = dict(_lockable(model))
    if not lockable:
        return [LockIssue("", f"{type(model).__name__} has no convolution or linear layer to lock")]
    first = next(iter(lockable))
    if isinstance(lockable[first], nn.Linear):
        return [
            LockIssue(
                first,
                "the model's first layer is linear: the ratio of its weight and bias gradients is "
                "its input, whatever lock stands behind it, so this model cannot be protected",
            )
        ]
    if isinstance(config.targets, tuple):
        for glob in config.targets:
            if not any(fnmatchcase(name, glob) for name in lockable):
                issues.append(
                    LockIssue(
                        "",
                        f"targets: {glob!r} matches no convolution or linear layer; the model has: "
                        + ", ".join(lockable),
                    )
                )
    for site in _sites(model, config, lockable):
        if hasattr(model.get_submodule(site.holder), "keylock"):
            issues.append(LockIssue(site.holder, "has an attribute named keylock of its own"))
    return issues


def plan(model: nn.Module, config: KeyLockConfig) -> list[Site]:
    """Where the locks go, in the model's own order.

    Raises:
        LockError: with every reason against it, on one line.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6))
        >>> [site.holder for site in plan(model, KeyLockConfig())]
        ['1']

    """
    issues = check_model(model, config)
    if issues:
        raise LockError("cannot lock the model: " + "; ".join(map(str, issues)))
    return _sites(model, config, dict(_lockable(model)))


def _lockable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            yield name, module


def _sites(model: nn.Module, config: KeyLockConfig, lockable: dict[str, nn.Module]) -> list[Site]:
    convolutions = [name for name, layer in lockable.items() if isinstance(layer, CONVOLUTIONS)]
    if config.targets == "first":
        names = convolutions[:1]
    elif config.targets == "all":
        names = convolutions
    else:
        names = [n for n in lockable if any(fnmatchcase(n, glob) for glob in config.targets)]
    behind = _norms_behind(model)
    return [_site(name, lockable[name], behind.get(name)) for name in names]


def _site(name: str, layer: nn.Module, norm: tuple[str, int] | None) -> Site:
    if isinstance(layer, nn.Linear):
        channels, own, channel_dim = layer.out_features, "layer", -1
    else:
        assert isinstance(layer, CONVOLUTIONS)
        channels, own, channel_dim = layer.out_channels, "batch", 1
    if norm is None:
        return Site(name, name, channels, channel_dim, own)
    return Site(name, norm[0], channels, norm[1], None)


def _norms_behind(model: nn.Module) -> dict[str, tuple[str, int]]:
    """Layer name to (name of the norm behind it, its channel dimension).

    The norm behind a layer is the next module without children, in the order of registration, when
    it normalises as many channels as the layer gives. Should a model not run it there, the lock
    still stands on a layer of the model; should it not run it at all, the lock gets no gradient,
    and the host stops the job after the first round.
    """
    leaves = [(n, m) for n, m in model.named_modules() if not any(True for _ in m.children())]
    found = {}
    for (name, layer), (norm_name, norm) in pairwise(leaves):
        if isinstance(layer, nn.Linear):
            channels, channel_dim = layer.out_features, -1
        elif isinstance(layer, CONVOLUTIONS):
            channels, channel_dim = layer.out_channels, 1
        else:
            continue
        if type(norm) is nn.LayerNorm and norm.normalized_shape == (channels,):
            found[name] = (norm_name, -1)
        elif isinstance(norm, CHANNELS_FIRST_NORMS) and _norm_channels(norm) == channels:
            # BatchNorm1d behind a linear layer gets (n, c): both dimensions are the same one
            found[name] = (norm_name, 1 if channel_dim == 1 else -1)
    return found


def _norm_channels(norm: nn.Module) -> int:
    return norm.num_channels if isinstance(norm, nn.GroupNorm) else int(norm.num_features)  # type: ignore[arg-type]  # every other one of CHANNELS_FIRST_NORMS has it
