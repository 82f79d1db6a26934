"""What of a module goes where: on weights, behind a norm, on the first layer, on the last."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from torch import nn

from .config import KeyLockConfig
from .flow import Flow, out_channels
from .kinds import is_plain
from .pieces import Pieces

__all__ = ["Placing", "Site"]

MAP_SIDE = 4
"""Of the grids of a module with map."""


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
        on_weights: whether the lock's mixing acts on the holder's weight and bias.
        pieces: what is private on the holder beside gamma and beta.

    """

    layers: tuple[str, ...]
    holder: str
    channels: int
    channel_dim: int
    normalise: str | None
    on_weights: bool = False
    pieces: Pieces = field(default_factory=Pieces)


class Placing:
    """Gives each lock its pieces, and layers without a lock theirs.

    Args:
        model: to be locked.
        config: how.
        flow: how it runs.
        targets: names of the layers to lock.

    Attributes:
        issues: what stands against it: (layer or "", reason).

    """

    def __init__(
        self, model: nn.Module, config: KeyLockConfig, flow: Flow, targets: tuple[str, ...]
    ) -> None:
        self.model, self.config, self.flow, self.targets = model, config, flow, targets
        self.issues: list[tuple[str, str]] = []

    def place(self, sites: list[Site]) -> tuple[tuple[Site, ...], dict[str, Pieces]]:
        """The locks with their pieces, and what is private on other layers' weights."""
        weights: dict[str, Pieces] = {}
        placed = {site.holder: self._based(site, weights) for site in sites}
        additions = {**self._inputs(), **self._stem(), **self._head()}
        for name, pieces in additions.items():
            if name in placed:
                site = placed[name]
                placed[name] = replace(site, pieces=_both(site.pieces, pieces))
            else:
                weights[name] = _both(weights.get(name, Pieces()), pieces)
        return tuple(placed.values()), weights

    def _based(self, site: Site, weights: dict[str, Pieces]) -> Site:
        """One lock, with its mixing where it belongs: on weights, or behind the norm."""
        config = self.config
        mixed = any(self._mixed(name) for name in site.layers)
        pieces = Pieces(mixing=site.channels if mixed and config.base != "affine" else 0)
        if config.has("map"):
            pieces = replace(pieces, map=MAP_SIDE, channels=site.channels)
        site = replace(site, pieces=pieces)
        if config.base != "weights" or not all(self._is_mixable(name) for name in site.layers):
            return site
        if site.normalise is not None:
            norm = site.normalise if config.has("norm") else None
            on_weights = norm is None or bool(pieces.mixing)
            return replace(site, normalise=norm, on_weights=on_weights)
        if pieces.mixing:
            for name in filter(self._mixed, site.layers):
                weights[name] = Pieces(mixing=out_channels(self.model.get_submodule(name)))
        return replace(site, pieces=replace(pieces, mixing=0))

    def _mixed(self, name: str) -> bool:
        mixed = self.config.mixed
        if isinstance(mixed, tuple):
            return any(fnmatchcase(name, glob) for glob in mixed)
        first = self.flow.order[0]
        return mixed == "all" or name != first or self.targets == (first,)

    def _is_mixable(self, name: str) -> bool:
        """Whether a layer's rows may be mixed: not in groups, which do not see the same inputs.

        Nor where the weight is made of other parameters, or what is computed with it is the user's.
        """
        layer = self.model.get_submodule(name)
        has = layer._parameters.get("weight") is not None
        return has and getattr(layer, "groups", 1) == 1 and is_plain(layer)

    def _has_columns(self, name: str) -> bool:
        """Whether its inputs may be mixed, or its weight be another: it is laid out (out, in)."""
        layer = self.model.get_submodule(name)
        return self._is_mixable(name) and not isinstance(layer, nn.modules.conv._ConvTransposeNd)

    def _inputs(self) -> dict[str, Pieces]:
        if not self.config.has("inputs"):
            return {}
        # of the model's own inputs there is nothing to gain: they are the picture's colours
        names = [n for n in self.targets if n != self.flow.order[0] and self._has_columns(n)]
        weights = {name: self.model.get_submodule(name).get_parameter("weight") for name in names}
        return {name: Pieces(inputs=weight.shape[1]) for name, weight in weights.items()}

    def _stem(self) -> dict[str, Pieces]:
        name = self.flow.order[0]
        if not self.config.has("stem"):
            return {}
        if not self._has_columns(name):
            self.issues.append(
                (name, "module: stem: no private weights can take the place of its own")
            )
            return {}
        layer = self.model.get_submodule(name)
        shape = tuple(layer.get_parameter("weight").shape)
        return {name: Pieces(own=shape, own_bias=layer._parameters.get("bias") is not None)}

    def _head(self) -> dict[str, Pieces]:
        if not self.config.has("head"):
            return {}
        found: dict[str, Pieces] = {}
        for before, name in zip(self.flow.order, self.flow.order[1:], strict=False):
            layer = self.model.get_submodule(name)
            if name not in self.flow.last or not isinstance(layer, nn.Linear):
                continue
            if self._has_columns(name):
                channels = out_channels(self.model.get_submodule(before))
                positions, rest = divmod(layer.in_features, channels)
                found[name] = (
                    Pieces(inputs=layer.in_features)
                    if rest or positions == 1
                    else Pieces(inputs=channels, positions=positions)
                )
        if not found:
            self.issues.append(
                ("", "module: head: the model has no plain linear layer at its end; leave head out")
            )
        return found


def _both(one: Pieces, other: Pieces) -> Pieces:
    """The pieces of one layer together; weights that are private altogether need no mixing."""
    return Pieces(
        mixing=0 if other.own else one.mixing,
        inputs=0 if other.own else one.inputs or other.inputs,
        positions=one.positions or other.positions,
        own=one.own or other.own,
        own_bias=one.own_bias or other.own_bias,
        map=one.map,
        channels=one.channels,
    )
