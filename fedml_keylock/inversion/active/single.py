"""Finds rows that a single picture reached, by the bias's gradient, and recovers the picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ...tensors import under
from ...types import ClientUpdate, Reconstruction
from ..base import SEARCH, check_level, check_one_step
from ..engine.observe import observe
from ..engine.relu_behind import check_relu
from ..knowledge import Knowledge
from .arming import ActiveAttack, State, floats, loaded, not_armed
from .path import Path

__all__ = ["different", "of_one", "opened", "read_rows"]

Found = tuple[Tensor, Tensor]
"""Pictures ``(k, *shape)`` and their labels ``(k,)``."""

_AS_SAID = 3e-5
"""Largest distance of a row from a label's value, beside rounding; relative to the largest one."""
_TOO_ROUGH = 1e-2
"""Largest rounding error at which rows are read, in the same unit."""
_OUTSIDE = 0.02
"""How far a pixel may exceed the bounds, relative to their distance; mixtures exceed more."""
_SAME = 1e-2
"""Largest mean distance of pixels at which two rows found the same picture, likewise."""


def opened(
    attack: str, model: nn.Module, input_shape: tuple[int, ...], bounds: tuple[float, float]
) -> tuple[Path, State]:
    """The path to a model's first linear layer, and a state that passes pictures on to it.

    Raises:
        AttackError: the model has no such layer with a ReLU behind it.

    """
    path = Path.of(attack, model, input_shape, bounds)
    check_relu(attack, loaded(model, {}), path.linear, shape=input_shape, bounds=bounds)
    state = floats(model)
    path.open(model, state)
    return path, state


def read_rows(
    attack: ActiveAttack,
    updates: Sequence[ClientUpdate],
    model: nn.Module,
    knowledge: Knowledge,
    *,
    armed: Callable[[Tensor, Tensor], bool],
    apart: Callable[[Tensor], Tensor],
    progress: Callable[[int, int], None] | None,
) -> Reconstruction:
    """Recover the pictures that reached a row of the first linear layer alone.

    Pictures that were not found are grey, with the label -1. The cost is their share. It is
    infinite if none was found, which is a failed search and no success of a defense.

    Args:
        attack: the attack.
        updates: as for `Attack.reconstruct`.
        model: as for `Attack.reconstruct`.
        knowledge: as for `Attack.reconstruct`.
        armed: whether rows and biases are the attack's.
        apart: separates the rows' gradients ``(r, ...)``, of which neighbours may share pictures.
        progress: as for `Attack.reconstruct`.

    Raises:
        AttackError: an update started from other weights, or does not fit.

    """
    check_level(attack, knowledge.level)
    check_one_step(attack.name, knowledge, instead=SEARCH)
    seen, batch = observe(updates, model, knowledge), knowledge.batch
    path = Path.of(attack.name, seen.model, knowledge.input_shape, knowledge.bounds)
    weight, bias = under(path.linear, "weight"), under(path.linear, "bias")
    like = seen.targets[weight]
    images = like.new_full((len(updates), batch, *knowledge.input_shape), sum(knowledge.bounds) / 2)
    labels = torch.full((len(updates), batch), -1, device=like.device)
    for index, update in enumerate(updates):
        rows, biases = seen.started(weight)[index], seen.started(bias)[index]
        if not armed(rows, biases):
            raise not_armed(attack.name)
        place = int(seen.state[index])
        state = {n: some[place] for n, some in {**seen.public, **seen.fixed}.items()}
        greatest = torch.maximum(biases.abs(), rows.abs().amax(1))
        rounded = 4 * torch.finfo(rows.dtype).eps * greatest / update.learning_rate
        inputs, which = of_one(
            apart(batch * seen.targets[weight][index].double()),
            apart(batch * seen.targets[bias][index].double()),
            path.per_label(seen.model, state, knowledge.loss, knowledge.classes),
            batch * rounded.double(),
        )
        some = path.pictures(seen.model, state, inputs)
        some, which = different(some, which, knowledge.bounds)
        count = min(len(some), batch)
        images[index, :count], labels[index, :count] = some[:count], which[:count]
        if progress is not None:
            progress(index + 1, len(updates))
    cost = (labels < 0).to(like).mean(1)
    cost = cost.masked_fill(cost == 1, float("inf"))
    return Reconstruction(
        images=images.clamp(*knowledge.bounds),
        labels=labels,
        cost=cost,
        history=cost[None],
        diverged=cost.isinf().long(),
        attack=attack.name,
        knowledge=knowledge.level,
    )


def of_one(weights: Tensor, biases: Tensor, table: Tensor, rounded: Tensor) -> Found:
    """Inputs of rows that exactly one picture reached, and its label.

    Args:
        weights: the rows' gradients ``(r, n)``, times the number of pictures.
        biases: the biases' gradients ``(r,)``, times the number of pictures.
        table: what one picture of each label adds to each bias, ``(classes, r)``.
        rounded: the rounding errors ``(r,)`` of the biases' gradients.

    Returns:
        Inputs ``(k, n)`` and labels ``(k,)``; k may be 0.

    Example:
        >>> table = torch.tensor([[1.0, 1.0, 1.0], [-2.0, -2.0, -2.0]])
        >>> of_one(torch.ones(3, 2), torch.tensor([-2.0, 0.0, -1.0]), table, torch.zeros(3))
        (tensor([[-0.5000, -0.5000]]), tensor([1]))

    """
    away, labels = (biases - table).abs().min(0)
    greatest = table.abs().amax(0)
    off = _AS_SAID * greatest + rounded
    alone = (away <= off) & (biases.abs() > off) & (rounded < _TOO_ROUGH * greatest)
    # the table is exact, and the bias's gradient is rounded
    exact = table.gather(0, labels[None])[0, alone]
    return weights[alone] / exact[:, None], labels[alone]


def different(images: Tensor, labels: Tensor, bounds: tuple[float, float]) -> Found:
    """The distinct pictures within the bounds, those found most often first.

    Example:
        >>> images = torch.tensor([[0.1, 0.2], [0.5, 0.5], [0.5, 0.5], [0.0, 7.0]])
        >>> different(images, torch.tensor([3, 1, 1, 2]), (0.0, 1.0))[1]
        tensor([1, 3])

    """
    low, high = bounds
    slack = _OUTSIDE * (high - low)
    flat = images.flatten(1)
    inside = ((flat >= low - slack) & (flat <= high + slack)).all(1)
    images, flat, labels = images[inside], flat[inside], labels[inside]
    same = torch.cdist(flat, flat, p=1) < _SAME * (high - low) * flat.shape[1]
    first = ~same.tril(-1).any(1)
    order = same.sum(1)[first].argsort(descending=True, stable=True)
    return images[first][order], labels[first][order]
