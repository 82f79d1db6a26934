"""Which gradients of rows are those of one picture: told by the bias's, which knows the labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...types import Reconstruction
from ..engine.observe import Observation
from ..knowledge import Knowledge
from .base import State

__all__ = ["Found", "different", "gathered", "of_one", "state_of"]

Found = tuple[Tensor, Tensor]
"""Pictures ``(k, *shape)`` and their labels ``(k,)``."""

_AS_SAID = 1e-3
"""How far a row may be from what a label adds, in units of what the greatest one does."""
_OUTSIDE = 0.02
"""How far beyond the bounds a pixel may be, in units of their distance: mixtures are."""
_SAME = 1e-2
"""Mean distance of the pixels of one picture that two rows found, likewise."""


def state_of(observation: Observation, index: int) -> State:
    """The state that the server had sent before an update."""
    place = int(observation.state[index])
    entries = {**observation.public, **observation.fixed}
    return {name: tensor[place] for name, tensor in entries.items()}


def of_one(weights: Tensor, biases: Tensor, table: Tensor) -> Found:
    """Inputs of the rows that exactly one picture has reached, and its label.

    Args:
        weights: gradients ``(r, n)`` of rows, times the number of pictures.
        biases: ``(r,)`` likewise, of their biases.
        table: ``(classes, r)`` what one picture of a label adds to each bias.

    Returns:
        ``(k, n)`` inputs and ``(k,)`` labels; k may be 0.

    Example:
        >>> table = torch.tensor([[1.0, 1.0, 1.0], [-2.0, -2.0, -2.0]])
        >>> of_one(torch.ones(3, 2), torch.tensor([-2.0, 0.0, -1.0]), table)[1]
        tensor([1])

    """
    away, labels = (biases - table).abs().min(0)
    greatest = table.abs().amax(0)
    alone = (away <= _AS_SAID * greatest) & (biases.abs() > _AS_SAID * greatest)
    return weights[alone] / biases[alone, None], labels[alone]


def different(images: Tensor, labels: Tensor, bounds: tuple[float, float]) -> Found:
    """Those of the pictures that are within the bounds, each once: those found most often first."""
    low, high = bounds
    slack = _OUTSIDE * (high - low)
    flat = images.flatten(1)
    inside = ((flat >= low - slack) & (flat <= high + slack)).all(1)
    images, flat, labels = images[inside], flat[inside], labels[inside]
    if not len(flat):
        return images, labels
    same = torch.cdist(flat, flat, p=1) < _SAME * (high - low) * flat.shape[1]
    first = same.double().argmax(1) == torch.arange(len(flat), device=flat.device)
    order = same.sum(1)[first].argsort(descending=True, stable=True)
    return images[first][order], labels[first][order]


def gathered(name: str, made: Sequence[Found], knowledge: Knowledge) -> Reconstruction:
    """What was found behind each update; places of what was not are grey, with the label -1."""
    middle, batch = sum(knowledge.bounds) / 2, knowledge.batch
    like = made[0][0]
    images = like.new_full((len(made), batch, *knowledge.input_shape), middle)
    labels = torch.full((len(made), batch), -1, device=like.device)
    for place, (some, which) in enumerate(made):
        count = min(len(some), batch)
        images[place, :count], labels[place, :count] = some[:count], which[:count]
    missing = (labels < 0).to(like).mean(1)
    cost = missing.masked_fill(missing == 1, float("inf"))
    return Reconstruction(
        images=images.clamp(*knowledge.bounds),
        labels=labels,
        cost=cost,
        history=cost[None],
        diverged=cost.isinf().long(),
        attack=name,
        knowledge=knowledge.level,
    )
