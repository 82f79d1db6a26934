"""Finds which normalisation a layer's output goes into.

A model whose control flow depends on its data cannot be traced. Then the order of registration is
used instead, in which almost every model lists its layers.
"""

from __future__ import annotations

import itertools
import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from .kinds import CONVOLUTIONS, EMBEDDINGS, LEARNED, LOCKABLE, NORMS
from .trace import traced

__all__ = ["Flow", "Norm", "asks_for_shape", "flow_of", "norm_channels", "out_channels"]

KEEPS = {
    *("to", "float", "half", "contiguous", "clone"),
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d),
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
}
"""Operations that change neither values nor dimensions."""
LAYOUT = KEEPS | {
    *(torch.permute, torch.transpose, torch.reshape, torch.flatten, torch.squeeze),
    *(torch.unsqueeze, torch.movedim, torch.swapaxes),
    *("permute", "transpose", "reshape", "view", "flatten", "squeeze", "unsqueeze"),
    *("movedim", "swapaxes", nn.Flatten, nn.Unflatten),
}
"""Operations that keep a channel's scale and shift."""
JOINS = {
    *(operator.add, operator.iadd, torch.add, "add", "add_"),
    *(torch.cat, torch.concat, torch.concatenate, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
}
"""Operations after which a batch norm still removes a channel's scale and shift."""
MEANS = {torch.mean, "mean"}
ADAPTIVE_POOLS = {
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
}
"""Operations that, with an output size of 1, leave one value a channel instead of a map."""
SHAPES = {"size", "dim", "numel", "shape", "ndim", "dtype", "device", "is_cuda", "layout"}
"""Methods and attributes of a tensor that return its shape, type or device."""


@dataclass(frozen=True)
class Norm:
    """A normalisation behind a layer: its module's name, and its channel dimension (1 or -1)."""

    name: str
    channel_dim: int


@dataclass(frozen=True)
class Flow:
    """The order and connections of a model's layers.

    Attributes:
        order: every convolution, linear layer and embedding, in order of execution.
        behind: for each layer, all normalisations that its output goes into; layers whose output
            also goes elsewhere are left out.
        pooled: layers that get one value a channel and no map: squeeze-and-excitation gates.
        last: layers with no trainable layer behind them: heads.

    """

    order: tuple[str, ...]
    behind: dict[str, tuple[Norm, ...]]
    pooled: frozenset[str]
    last: frozenset[str]


def flow_of(model: nn.Module) -> Flow:
    """Trace a model; if that fails, use its order of registration.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> flow_of(model).behind["0"][0].name
        '1'

    """
    graph = traced(model)
    return _registered(model) if graph is None else _Reader(model, graph).read()


def asks_for_shape(node: fx.Node) -> bool:
    """Whether a traced node reads only a tensor's shape, type or device, not its values.

    Example:
        >>> nodes = fx.symbolic_trace(lambda x: x.T.view(x.shape)).graph.nodes
        >>> [node.name for node in nodes if asks_for_shape(node)]
        ['getattr_2']

    """
    return (node.args[1] if node.target is getattr else node.target) in SHAPES


def norm_channels(norm: nn.Module) -> int:
    """How many channels a normalisation scales; 0 if it scales other dimensions too.

    Example:
        >>> norm_channels(nn.GroupNorm(2, 8))
        8

    """
    if isinstance(norm, (nn.LayerNorm, nn.RMSNorm)):
        return norm.normalized_shape[0] if len(norm.normalized_shape) == 1 else 0
    if isinstance(norm, nn.GroupNorm):
        return norm.num_channels
    assert isinstance(norm, (_BatchNorm, _InstanceNorm))
    return norm.num_features


class _Reader:
    """Reads the flow from a traced graph."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.modules = dict(model.named_modules())
        self.nodes = list(graph.nodes)
        self.calls: dict[str, list[fx.Node]] = {}
        for node in self.nodes:
            if isinstance(self.module(node), (*LOCKABLE, *EMBEDDINGS)):
                self.calls.setdefault(str(node.target), []).append(node)

    def module(self, node: fx.Node) -> nn.Module | None:
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def what(self, node: fx.Node) -> Any:
        """The operation of a node: a module's class, a function, or a method's name."""
        module = self.module(node)
        return node.target if module is None else type(module)

    def read(self) -> Flow:
        behind = {name: norms for name in self.calls if (norms := self.norms_behind(name))}
        pooled, leads_on = self.pooled(), self.leads_on()
        return Flow(
            order=tuple(self.calls),
            behind=behind,
            pooled=frozenset(n for n, nodes in self.calls.items() if pooled.issuperset(nodes)),
            last=frozenset(n for n, nodes in self.calls.items() if leads_on.isdisjoint(nodes)),
        )

    def pooled(self) -> set[fx.Node]:
        """Nodes whose output is one value a channel."""
        found: set[fx.Node] = set()
        for node in self.nodes:
            inputs = node.all_input_nodes
            if (inputs and found.issuperset(inputs)) or self.what(node) in MEANS:
                found.add(node)
            elif self.what(node) in ADAPTIVE_POOLS:
                size = getattr(
                    self.module(node), "output_size", node.args[-1] if node.args else None
                )
                if node.kwargs.get("output_size", size) in (1, (1,), (1, 1), (1, 1, 1)):
                    found.add(node)
        return found

    def leads_on(self) -> set[fx.Node]:
        """Nodes with a trainable layer behind them."""
        found: set[fx.Node] = set()
        for node in reversed(self.nodes):
            if any(n in found or isinstance(self.module(n), LEARNED) for n in node.users):
                found.add(node)
        return found

    def norms_behind(self, name: str) -> tuple[Norm, ...]:
        """The norms that a layer's output goes into; none if it also goes elsewhere.

        Directly, or for batch norms, through sums, concatenations and pools: these norms would
        remove a shift on the layer's own output, and often a scale.
        """
        found: dict[str, Norm] = {}
        straight = True
        layer = self.modules[name]
        if isinstance(layer, EMBEDDINGS):
            return ()
        for node in self.calls[name]:
            ends = self.ends(node)
            if ends is None:
                return ()
            for norm, direct, moved in ends:
                module = self.modules[norm]
                found[norm] = Norm(norm, _channel_dim(layer, module, moved=moved))
                straight = straight and direct and norm_channels(module) == out_channels(layer)
        # a batch norm removes a channel's scale and shift; the other norms mix channels
        batch = isinstance(layer, CONVOLUTIONS) and all(
            isinstance(self.modules[n], _BatchNorm) for n in found
        )
        return tuple(found.values()) if straight or batch else ()

    def ends(self, node: fx.Node) -> list[tuple[str, bool, bool]] | None:
        """The norms that a node's output goes into: (name, directly?, with its layout changed?).

        None when the output goes anywhere else too, or nowhere.
        """
        ends, seen, todo = [], {node}, [(node, True, False)]
        while todo:
            here, direct, moved = todo.pop()
            for user in here.users:
                kind = self.what(user)
                if isinstance(self.module(user), NORMS):
                    ends.append((str(user.target), direct, moved))
                elif asks_for_shape(user):
                    continue
                elif kind in LAYOUT or kind in JOINS:
                    if user not in seen:
                        seen.add(user)
                        todo.append((user, direct and kind in LAYOUT, moved or kind not in KEEPS))
                else:
                    return None
        return ends or None


def _channel_dim(layer: nn.Module, norm: nn.Module, *, moved: bool) -> int:
    """The channel dimension of a norm behind a layer, 1 or -1.

    Args:
        layer: the one whose output the norm gets.
        norm: the normalisation.
        moved: whether the output's layout changes on the way.

    """
    if isinstance(norm, (nn.LayerNorm, nn.RMSNorm)):
        # the last dimension, unless the norm's class is made for maps and gets one unchanged
        plain = type(norm).forward in (nn.LayerNorm.forward, nn.RMSNorm.forward)
        if moved or plain:
            return -1
    return -1 if isinstance(layer, nn.Linear) and not moved else 1


def out_channels(layer: nn.Module) -> int:
    """How many output channels a convolution or linear layer has.

    Example:
        >>> out_channels(nn.ConvTranspose2d(2, 5, 3))
        5

    """
    return layer.out_features if isinstance(layer, nn.Linear) else int(layer.out_channels)  # type: ignore[arg-type]  # a convolution


def _registered(model: nn.Module) -> Flow:
    """The flow of a model if its modules without children run in the order of registration."""
    leaves = [(n, m) for n, m in model.named_modules() if not any(True for _ in m.children())]
    # attention uses this layer's weights and never calls it
    unused = nn.modules.linear.NonDynamicallyQuantizableLinear
    kinds = (*LOCKABLE, *EMBEDDINGS)
    order = [n for n, m in leaves if isinstance(m, kinds) and not isinstance(m, unused)]
    behind: dict[str, tuple[Norm, ...]] = {}
    for (name, layer), (norm_name, norm) in itertools.pairwise(leaves):
        if name not in order or not isinstance(norm, NORMS) or isinstance(layer, EMBEDDINGS):
            continue
        if norm_channels(norm) == out_channels(layer):
            behind[name] = (Norm(norm_name, _channel_dim(layer, norm, moved=False)),)
    convolutions = all(isinstance(m, CONVOLUTIONS) for n, m in leaves if n in order)
    heads = frozenset(order[-1:] if convolutions else [])
    return Flow(tuple(order), behind, pooled=frozenset(), last=heads)
