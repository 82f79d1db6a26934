"""Which layers of a model can be locked, where each lock goes, and why something cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from ...errors import LockError
from ...names import under
from ..config import KeyLockConfig
from ..rotated.turns import parts_of
from .flow import Flow, flow_of, norm_channels
from .kinds import CONVOLUTIONS, EMBEDDINGS, LOCKABLE
from .module import is_locked

__all__ = ["LayerCheck", "LockIssue", "ModelCheck", "Site", "check_model", "plan"]

PINNED = {"weight": 1.0, "bias": 0.0}
"""What a locked normalisation layer's own parameters are fixed at."""
STATISTICS = {"running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0.0}
"""What its running statistics are shown as, unless they are shared on purpose."""


@dataclass(frozen=True)
class Site:
    """Where one lock goes.

    Attributes:
        layers: names of the convolutions or linear layers that it locks, the first one first.
        holder: name of the module that the lock hangs on: the normalisation behind the layers, or
            the layer itself where there is none.
        channels: how many channels the holder's output has.
        channel_dim: 1 or -1, where they are.
        normalise: the norm that the lock must bring: "batch", "layer" or None.

    """

    layers: tuple[str, ...]
    holder: str
    channels: int
    channel_dim: int
    normalise: str | None


@dataclass(frozen=True)
class LockIssue:
    """Why a layer, or a whole model (layer ""), cannot be locked."""

    layer: str
    reason: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.reason}" if self.layer else self.reason


@dataclass(frozen=True)
class LayerCheck:
    """What would become of one layer: locked, or the reason why not."""

    layer: str
    locked: bool
    how: str


@dataclass(frozen=True)
class ModelCheck:
    """What locking a model would do.

    Attributes:
        issues: everything that stands against it; empty when it can be locked.
        sites: where the locks would go, as the model runs.
        layers: every convolution, linear layer and embedding, locked or not and why.
        constants: public names that would always be sent as the same constant, with its value.
        shared: public names whose values the server would get, buffers included.

    """

    issues: tuple[LockIssue, ...]
    sites: tuple[Site, ...] = ()
    layers: tuple[LayerCheck, ...] = ()
    constants: Mapping[str, float] = field(default_factory=dict)
    shared: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.issues:
            return "cannot lock the model: " + "; ".join(map(str, self.issues))
        width = max(len(layer.layer) for layer in self.layers)
        lines = [
            f"{layer.layer:{width}}  {'locked' if layer.locked else 'shared'}  {layer.how}"
            for layer in self.layers
        ]
        return "\n".join([*lines, f"constant: {len(self.constants)}; shared: {len(self.shared)}"])

    @property
    def weakness(self) -> str:
        """What is known against locking the model so, or nothing.

        Example:
            >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))
            >>> check_model(net, KeyLockConfig(module="affine", targets=("1",))).weakness[:26]
            'the first layer, 0, is ope'
            >>> check_model(net, KeyLockConfig(module="affine")).weakness
            ''

        """
        if not self.layers or self.layers[0].locked:
            return ""
        first = self.layers[0].layer
        return (
            f"the first layer, {first}, is open, and no lock behind an open first layer hides its "
            f"input; add {first} to the targets"
        )


def check_model(model: nn.Module, config: KeyLockConfig) -> ModelCheck:
    """What locking this model so would do, and everything that stands against it.

    Nothing is changed.

    Example:
        >>> config = KeyLockConfig(module="affine")
        >>> check_model(nn.Sequential(nn.Linear(4, 2)), config).issues[0].layer
        '0'
        >>> print(check_model(nn.Sequential(nn.Conv2d(1, 2, 3)), config))
        0  locked  by a lock on it, with a batch norm of its own
        constant: 0; shared: 2

    """
    if is_locked(model):
        reason = "the model is locked already; unlock_model takes the lock out"
        return ModelCheck((LockIssue("", reason),))
    lazy = tuple(
        LockIssue(name, "its shape is not known before the first forward pass (a lazy module)")
        for name, module in model.named_modules()
        if isinstance(module, LazyModuleMixin)
    )
    if lazy:
        return ModelCheck(lazy)
    if config.is_whole:
        return _check_whole(model)
    flow = flow_of(model)
    kinds = {name: model.get_submodule(name) for name in flow.order}
    issue = _front(model, flow, kinds)
    if issue is not None:
        return ModelCheck((issue,))
    chosen, left = _chosen(config, flow, kinds)
    issues = _target_issues(model, config, kinds, chosen)
    sites = tuple(_sites(model, chosen, flow))
    issues += [
        LockIssue(site.holder, "has an attribute named keylock of its own")
        for site in sites
        if hasattr(model.get_submodule(site.holder), "keylock")
    ]
    if issues:
        return ModelCheck(tuple(issues))
    constants = _constants(model, sites, config)
    return ModelCheck(
        issues=(),
        sites=sites,
        layers=tuple(_verdict(name, sites, left) for name in flow.order),
        constants=constants,
        shared=tuple(name for name in model.state_dict() if name not in constants),
    )


def plan(model: nn.Module, config: KeyLockConfig) -> ModelCheck:
    """`check_model`, for a model that must be lockable.

    Raises:
        LockError: with every reason against it, on one line.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6))
        >>> planned = plan(model, KeyLockConfig(module="affine"))
        >>> [site.holder for site in planned.sites]
        ['1']
        >>> planned.constants["1.running_var"]
        1.0

    """
    checked = check_model(model, config)
    if checked.issues:
        raise LockError(str(checked))
    return checked


def _check_whole(model: nn.Module) -> ModelCheck:
    """A lock on the whole state asks nothing of the layers."""
    if hasattr(model, "keylock"):
        return ModelCheck((LockIssue("", "has an attribute named keylock of its own"),))
    try:
        turned = {name for part in parts_of(model) for name in part.names}
    except LockError as error:
        return ModelCheck((LockIssue("", str(error)),))
    owners = dict.fromkeys(name.rpartition(".")[0] for name in turned)
    layers = [n or type(model).__name__ for n, _ in model.named_modules() if n in owners]
    how = "its numbers are sent turned, with all others"
    return ModelCheck(
        issues=(),
        layers=tuple(LayerCheck(name, locked=True, how=how) for name in layers),
        shared=tuple(name for name in model.state_dict() if name not in turned),
    )


def _front(model: nn.Module, flow: Flow, kinds: dict[str, nn.Module]) -> LockIssue | None:
    """What makes a model's first layer give its input away, whatever stands behind it."""
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
    """The layers to lock, and for each convolution that is left out on purpose, why."""
    convolutions = [name for name in flow.order if isinstance(kinds[name], CONVOLUTIONS)]
    if config.targets == "first":
        return convolutions[:1], {}
    if config.targets == "all":
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
        if isinstance(kinds[n], LOCKABLE) and any(fnmatchcase(n, glob) for glob in config.targets)
    ], {}


def _target_issues(
    model: nn.Module, config: KeyLockConfig, kinds: dict[str, nn.Module], chosen: list[str]
) -> list[LockIssue]:
    """What the configuration names and the model does not have."""
    lockable = [n for n, m in kinds.items() if isinstance(m, LOCKABLE)]
    issues = [
        LockIssue(
            "",
            f"targets: {glob!r} matches no convolution or linear layer; the model has: "
            + ", ".join(lockable),
        )
        for glob in (config.targets if isinstance(config.targets, tuple) else ())
        if not any(fnmatchcase(name, glob) for name in lockable)
    ]
    if not chosen and not issues:
        issues.append(
            LockIssue(
                "",
                f"{type(model).__name__} has no convolution; name linear layers in targets: "
                + ", ".join(lockable),
            )
        )
    return issues


def _sites(model: nn.Module, names: list[str], flow: Flow) -> list[Site]:
    """One lock a holder: a norm behind several layers locks them all."""
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
        return LayerCheck(name, locked=False, how=left.get(name, "not among the targets"))
    if own[0].holder != name:
        how = "by a lock on " + ", ".join(site.holder for site in own)
    else:
        norm = own[0].normalise
        how = "by a lock on it" + (f", with a {norm} norm of its own" if norm else "")
    return LayerCheck(name, locked=True, how=how)
