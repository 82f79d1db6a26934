"""One round of a silo, done again: the update that certain images make on a certain model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...errors import AttackError, first_line
from ...inversion import LocalTraining
from ...tensors import copied
from ...threads import one_thread
from ...types import ClientUpdate

__all__ = ["count_classes", "train_update"]


def train_update(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    learning_rate: float,
    training: LocalTraining | None = None,
    private: Collection[str] = (),
    silo: int = 0,
    round_index: int = 0,
) -> ClientUpdate:
    """What a silo sends that trains a copy of this model on these images.

    Args:
        model: is not changed.
        images: ``(n, c, h, w)``.
        labels: ``(n,)``.
        learning_rate: of SGD.
        training: of the round; None for one plain step on all the images.
        private: names in the model's state that are not sent.
        silo: whose it is said to be.
        round_index: of which round.

    Raises:
        AttackError: the model cannot be trained on such images.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> update = train_update(net, torch.rand(1, 1, 2, 2), torch.tensor([1]), learning_rate=0.1)
        >>> update.pseudo_gradient("1.weight").shape
        torch.Size([2, 4])

    """
    copy = deepcopy(model).train()
    before = _public(copy, private)
    how = training or LocalTraining(batch_size=len(images))
    optimizer = torch.optim.SGD(
        [parameter for parameter in copy.parameters() if parameter.requires_grad],
        lr=learning_rate,
        momentum=how.momentum,
        nesterov=how.nesterov,
        weight_decay=how.weight_decay,
    )
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(silo)  # of a dropout's mask
        for _ in range(how.epochs):
            for start in range(0, len(images), how.batch_size):
                step = slice(start, start + how.batch_size)
                optimizer.zero_grad()
                try:
                    cross_entropy(copy(images[step]), labels[step]).backward()  # type: ignore[no-untyped-call]  # torch
                except (RuntimeError, ValueError, IndexError) as error:
                    raise _unfit(images, error) from None
                optimizer.step()
    after = _public(copy, private)
    return ClientUpdate(before, after, learning_rate, len(images), silo, round_index)


def count_classes(model: nn.Module, images: Tensor) -> int:
    """How many classes a model tells apart, from what it says of an image.

    Raises:
        AttackError: it takes no such image, or says something else.

    Example:
        >>> count_classes(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.rand(1, 1, 2, 2))
        3

    """
    try:
        with torch.no_grad():
            scores = deepcopy(model).eval()(images[:1])
    except (RuntimeError, ValueError, IndexError) as error:
        raise _unfit(images, error) from None
    if not isinstance(scores, Tensor) or scores.ndim != 2:
        raise AttackError(f"the model gives no (n, classes) scores, but a {type(scores).__name__}")
    return scores.shape[1]


def _public(model: nn.Module, private: Collection[str]) -> Mapping[str, Tensor]:
    return copied({name: t for name, t in model.state_dict().items() if name not in private})


def _unfit(images: Tensor, error: Exception) -> AttackError:
    said = first_line(error)
    if "more than 1 value per channel" in said:  # a batch norm on a single number
        said += ": it needs larger pictures (--size) or more of them (--batch)"
    return AttackError(f"the model cannot be trained on images {tuple(images.shape)}: {said}")
