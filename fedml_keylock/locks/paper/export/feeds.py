"""What an export may fold into what: only what the model's own trace shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..flow import asks_for_shape
from ..kinds import CONVOLUTIONS, NORMS
from ..trace import traced

__all__ = ["Feeds", "feeds_of"]

KEEP_RANK = {
    *(F.relu, F.relu6, F.gelu, F.silu, F.elu, F.leaky_relu, F.softplus, F.hardswish, F.dropout),
    *(torch.relu, torch.sigmoid, torch.tanh, "relu", "sigmoid", "tanh", "contiguous"),
    *(torch.permute, torch.transpose, "permute", "transpose"),
}
"""Operations after which a tensor has as many dimensions as before."""
FIXED_RANK: Mapping[type[nn.Module], int] = {
    nn.BatchNorm2d: 4,
    nn.BatchNorm3d: 5,
    nn.InstanceNorm1d: 3,
    nn.InstanceNorm2d: 4,
    nn.InstanceNorm3d: 5,
}
"""Normalisations that take a batch with so many dimensions and no other."""


@dataclass(frozen=True)
class Feeds:
    """How a model runs, in training and in evaluation.

    Attributes:
        graphs: traces of the whole model with nothing but what it must be given; none when it
            cannot be traced.
        modules: by every name that they have.
        measured: how many dimensions the output of a module had on an example, where one was given.
        shared: parameters that belong to several modules.
        read: parameters whose values the model reads itself.
        looked_at: parameters whose type, device or shape it reads.

    """

    graphs: tuple[fx.Graph, ...]
    modules: Mapping[str, nn.Module]
    measured: Mapping[nn.Module, set[int]]
    shared: tuple[Tensor, ...]
    read: tuple[Tensor, ...]
    looked_at: tuple[Tensor, ...]

    def shares(self, layer: nn.Module) -> bool:
        """Whether this layer's weight or bias is also another's."""
        return _has(layer, self.shared)

    def reads(self, layer: nn.Module, *, values: bool) -> bool:
        """Whether the model reads this layer's weight or bias itself, beside running the layer.

        Args:
            layer: any.
            values: whether it does not matter when only a type, device or shape is read.

        """
        return _has(layer, self.read) or (not values and _has(layer, self.looked_at))

    def rank(self, layer: nn.Module) -> int | None:
        """How many dimensions a layer's output has, in a batch; None when that is not known."""
        if isinstance(layer, CONVOLUTIONS):
            return len(layer.kernel_size) + 2
        for kind, rank in FIXED_RANK.items():
            if isinstance(layer, kind):
                return rank
        found: set[int | None] = set(self.measured.get(layer, ()))
        if not found:
            found = {
                self._rank_of(node) for graph in self.graphs for node in self._calls(graph, layer)
            }
        return found.pop() if len(found) == 1 else None

    def _calls(self, graph: fx.Graph, module: nn.Module) -> list[fx.Node]:
        return [node for node in graph.nodes if self._module(node) is module]

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def _rank_of(self, node: Any) -> int | None:
        """By the operations that lead there, as far as they are known."""
        while isinstance(node, fx.Node):
            module = self._module(node)
            what = type(module) if module is not None else node.target
            if isinstance(module, CONVOLUTIONS):
                return len(module.kernel_size) + 2
            if isinstance(module, nn.Flatten) or what in (torch.flatten, "flatten"):
                return _flat(node, module)
            if what in ("view", "reshape") and len(node.args) > 2:
                return len(node.args) - 1
            keeps = isinstance(
                module, (nn.Linear, *NORMS, nn.Identity, nn.modules.dropout._DropoutNd)
            )
            keeps = keeps or getattr(what, "__module__", "") == "torch.nn.modules.activation"
            if not keeps and what not in KEEP_RANK:
                return None
            node = node.args[0] if node.args else None
        return None


def _has(layer: nn.Module, tensors: tuple[Tensor, ...]) -> bool:
    return any(p is tensor for p in layer.parameters(recurse=False) for tensor in tensors)


def _flat(node: fx.Node, module: nn.Module | None) -> int | None:
    """How many dimensions are left when all from one on are made one."""
    given: dict[str, Any]
    if isinstance(module, nn.Flatten):
        given = {"start_dim": module.start_dim, "end_dim": module.end_dim}
    else:
        given = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
    start, end = given.get("start_dim", 0), given.get("end_dim", -1)
    return start + 1 if isinstance(start, int) and start > 0 and end == -1 else None


def feeds_of(model: nn.Module, measured: Mapping[nn.Module, set[int]] | None = None) -> Feeds:
    """Trace a model in training and in evaluation, without changing it.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> feeds_of(model).rank(model[1])
        4

    """
    found = [traced(model, training=training) for training in (True, False)]
    graphs = [graph for graph in found if graph is not None]
    if len(graphs) < len(found):
        graphs = []  # half of it proves nothing
    owned = [p for module in model.modules() for p in module.parameters(recurse=False)]
    count = Counter(map(id, owned))
    own = dict(model.named_parameters(remove_duplicate=False))
    nodes = [n for g in graphs for n in g.nodes if n.op == "get_attr" and n.target in own]
    only_looked = [all(asks_for_shape(user) for user in node.users) for node in nodes]
    return Feeds(
        tuple(graphs),
        modules=dict(model.named_modules(remove_duplicate=False)),
        measured=measured or {},
        shared=tuple(p for p in owned if count[id(p)] > 1),
        read=tuple(own[n.target] for n, only in zip(nodes, only_looked, strict=True) if not only),
        looked_at=tuple(own[n.target] for n, only in zip(nodes, only_looked, strict=True) if only),
    )
