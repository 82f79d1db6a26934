"""Decides which layers of a model can be locked, and where each lock goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from ...errors import LockError
from ...tensors import under
from ..config import KeyLockConfig
from ..description import LayerCheck, LockIssue, ModelCheck
from .flow import Flow, flow_of, norm_channels
from .kinds import CONVOLUTIONS, EMBEDDINGS, LOCKABLE

__all__ = ["Site", "check_layers", "sites_of"]

PINNED = {"weight": 1.0, "bias": 0.0}
"""Values at which a locked normalisation layer's own parameters are fixed."""
PER_EXAMPLE = "_forward_counter"
"""The attribute that opacus puts on every parameter that it watches."""
STATISTICS = {"running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0.0}
"""The public values of its running statistics, unless they are shared on purpose."""


@dataclass(frozen=True)
class Site:
    """Where one lock goes.

    Attributes:
        layers: names of the convolutions or linear layers that it locks, in order.
        holder: name of the module that carries the lock: the normalisation behind the layers, or
            the layer itself if there is none.
        channels: how many channels the holder's output has.
        channel_dim: their dimension, 1 or -1.
        normalise: the norm that the lock must add: "batch", "layer" or None.

    """

    layers: tuple[str, ...]
    holder: str
    channels: int
    channel_dim: int
    normalise: str | None


def check_layers(model: nn.Module, config: KeyLockConfig) -> ModelCheck:
    """What locking this model's layers would do, and every reason why it cannot be locked.

    The model is not changed.

    Example:
        >>> config = KeyLockConfig(lock="paper")
        >>> check_layers(nn.Sequential(nn.Linear(4, 2)), config).issues[0].layer
        '0'
        >>> print(check_layers(nn.Sequential(nn.Conv2d(1, 2, 3)), config))
        0  locked  by a lock on it, with a batch norm of its own
        constant: 0; shared: 2

    """
    placed = _placed(model, config)
    if isinstance(placed, ModelCheck):
        return placed
    sites, left, order = placed
    constants = _constants(model, sites, config)
    return ModelCheck(
        issues=(),
        layers=tuple(_verdict(name, sites, left) for name in order),
        constants=constants,
        shared=tuple(name for name in model.state_dict() if name not in constants),
    )


def sites_of(model: nn.Module, config: KeyLockConfig) -> tuple[Site, ...]:
    """Where the locks go, in order of execution.

    Raises:
        LockError: naming every reason why the model cannot be locked, on one line.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6))
        >>> [site.holder for site in sites_of(model, KeyLockConfig(lock="paper"))]
        ['1']

    """
    placed = _placed(model, config)
    if isinstance(placed, ModelCheck):
        raise LockError(str(placed))
    return placed[0]


def _placed(
    model: nn.Module, config: KeyLockConfig
) -> ModelCheck | tuple[tuple[Site, ...], dict[str, str], tuple[str, ...]]:
    """The sites, the convolutions left out on purpose and why, and all layers in order.

    If the model cannot be locked, the reasons instead.
    """
    if any(hasattr(parameter, PER_EXAMPLE) for parameter in model.parameters()):
        reason = (
            "opacus computes gradients of each example for this model, and knows none of a lock's "
            "own parameters: use lock: sealed, which leaves the model as it is, or no opacus"
        )
        return ModelCheck((LockIssue("", reason),))
    flow = flow_of(model)
    kinds = {name: model.get_submodule(name) for name in flow.order}
    issue = _front(model, flow, kinds)
    if issue is not None:
        return ModelCheck((issue,))
    chosen, left = _chosen(config, flow, kinds)
    issues = _layer_issues(model, config, kinds, chosen)
    sites = tuple(_sites(model, chosen, flow))
    issues += [
        LockIssue(site.holder, "has an attribute named keylock of its own")
        for site in sites
        if hasattr(model.get_submodule(site.holder), "keylock")
    ]
    return ModelCheck(tuple(issues)) if issues else (sites, left, tuple(flow.order))


def _front(model: nn.Module, flow: Flow, kinds: dict[str, nn.Module]) -> LockIssue | None:
    """Why a model's first layer reveals its input behind any lock; None if it does not."""
    if not flow.order:
        name = type(model).__name__
        return LockIssue("", f"{name} has no convolution or linear layer to lock")
    first = flow.order[0]
    if isinstance(kinds[first], nn.Linear):
        return LockIssue(
            first,
            "the model's first layer is linear: the ratio of its weight and bias gradients is "
            "its input, whatever lock stands behind it, so this model cannot be protected",
        )
    if isinstance(kinds[first], EMBEDDINGS):
        return LockIssue(
            first,
            "the model's first layer is an embedding: the rows of its gradient that are not zero "
            "name the tokens, whatever lock stands behind it, so this model cannot be protected",
        )
    return None


def _chosen(
    config: KeyLockConfig, flow: Flow, kinds: dict[str, nn.Module]
) -> tuple[list[str], dict[str, str]]:
    """The layers to lock, and for each convolution left out on purpose, why."""
    convolutions = [name for name in flow.order if isinstance(kinds[name], CONVOLUTIONS)]
    if config.layers == "first":
        return convolutions[:1], {}
    if config.layers == "all":
        left = {}
        for name in convolutions[1:]:  # the first one always
            if name in flow.last:
                left[name] = "the head: its output is the model's"
            elif name in flow.pooled and name not in flow.behind:
                left[name] = "a gate: it gets one value a channel, which no norm could stand behind"
        return [name for name in convolutions if name not in left], left
    return [
        n
        for n in flow.order
        if isinstance(kinds[n], LOCKABLE) and any(fnmatchcase(n, glob) for glob in config.layers)
    ], {}


def _layer_issues(
    model: nn.Module, config: KeyLockConfig, kinds: dict[str, nn.Module], chosen: list[str]
) -> list[LockIssue]:
    """Names in the configuration that the model does not have."""
    lockable = [n for n, m in kinds.items() if isinstance(m, LOCKABLE)]
    issues = [
        LockIssue(
            "",
            f"layers: {glob!r} matches no convolution or linear layer; the model has: "
            + ", ".join(lockable),
        )
        for glob in (config.layers if isinstance(config.layers, tuple) else ())
        if not any(fnmatchcase(name, glob) for name in lockable)
    ]
    if not chosen and not issues:
        issues.append(
            LockIssue(
                "",
                f"{type(model).__name__} has no convolution; name linear layers in keylock.layers: "
                + ", ".join(lockable),
            )
        )
    return issues


def _sites(model: nn.Module, names: list[str], flow: Flow) -> list[Site]:
    """One lock for each holder: a norm behind several layers locks them all."""
    locked: dict[str, list[str]] = {}
    dims: dict[str, int] = {}
    for name in names:
        if name in flow.behind:
            for norm in flow.behind[name]:
                locked.setdefault(norm.name, []).append(name)
                dims[norm.name] = norm.channel_dim
        else:
            locked.setdefault(name, []).append(name)
            dims[name] = -1 if isinstance(model.get_submodule(name), nn.Linear) else 1
    return [
        _site(model.get_submodule(holder), holder, tuple(layers), dims[holder])
        for holder, layers in locked.items()
    ]


def _site(module: nn.Module, holder: str, layers: tuple[str, ...], channel_dim: int) -> Site:
    if isinstance(module, nn.Linear):
        return Site(layers, holder, module.out_features, channel_dim, "layer")
    if isinstance(module, CONVOLUTIONS):
        return Site(layers, holder, module.out_channels, channel_dim, "batch")
    return Site(layers, holder, norm_channels(module), channel_dim, None)


def _constants(model: nn.Module, sites: Sequence[Site], config: KeyLockConfig) -> dict[str, float]:
    values = PINNED if config.share_norm_statistics else PINNED | STATISTICS
    found: dict[str, float] = {}
    for site in sites:
        holder = model.get_submodule(site.holder)
        if site.normalise is None and not isinstance(holder, LOCKABLE):
            own = {**holder._parameters, **holder._buffers}
            found |= {under(site.holder, n): v for n, v in values.items() if own.get(n) is not None}
    return found


def _verdict(name: str, sites: Sequence[Site], left: Mapping[str, str]) -> LayerCheck:
    own = [site for site in sites if name in site.layers]
    if not own:
        return LayerCheck(name, locked=False, how=left.get(name, "not among keylock.layers"))
    if own[0].holder != name:
        how = "by a lock on " + ", ".join(site.holder for site in own)
    else:
        norm = own[0].normalise
        how = "by a lock on it" + (f", with a {norm} norm of its own" if norm else "")
    return LayerCheck(name, locked=True, how=how)
