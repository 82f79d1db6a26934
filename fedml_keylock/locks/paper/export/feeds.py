"""Finds which parameters an export may fold, from the model's own trace."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import Tensor, nn

from ..flow import asks_for_shape
from ..trace import traced

__all__ = ["Feeds", "feeds_of"]


@dataclass(frozen=True)
class Feeds:
    """Parameters of a model that are used beyond the one layer that they belong to.

    Attributes:
        shared: parameters that belong to several modules.
        read: parameters whose values the model reads itself.
        looked_at: parameters whose type, device or shape the model reads itself.

    """

    shared: tuple[Tensor, ...]
    read: tuple[Tensor, ...]
    looked_at: tuple[Tensor, ...]

    def shares(self, layer: nn.Module) -> bool:
        """Whether this layer's weight or bias also belongs to another."""
        return _has(layer, self.shared)

    def reads(self, layer: nn.Module, *, values: bool) -> bool:
        """Whether the model reads this layer's weight or bias other than by running the layer.

        Args:
            layer: any.
            values: whether to ignore reads of only a type, device or shape.

        """
        return _has(layer, self.read) or (not values and _has(layer, self.looked_at))


def _has(layer: nn.Module, tensors: tuple[Tensor, ...]) -> bool:
    return any(p is tensor for p in layer.parameters(recurse=False) for tensor in tensors)


def feeds_of(model: nn.Module) -> Feeds:
    """Trace a model in training and in evaluation, without changing it.

    Example:
        >>> tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> tied[1].weight = tied[0].weight
        >>> feeds_of(tied).shares(tied[1])
        True

    """
    found = [traced(model, training=training) for training in (True, False)]
    # one trace alone proves nothing
    graphs = [g for g in found if g is not None] if None not in found else []
    owned = [p for module in model.modules() for p in module.parameters(recurse=False)]
    count = Counter(map(id, owned))
    own = dict(model.named_parameters(remove_duplicate=False))
    nodes = [n for g in graphs for n in g.nodes if n.op == "get_attr" and n.target in own]
    only_looked = [all(asks_for_shape(user) for user in node.users) for node in nodes]
    return Feeds(
        shared=tuple(p for p in owned if count[id(p)] > 1),
        read=tuple(own[n.target] for n, only in zip(nodes, only_looked, strict=True) if not only),
        looked_at=tuple(own[n.target] for n, only in zip(nodes, only_looked, strict=True) if only),
    )
