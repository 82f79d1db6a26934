"""The published training, which central cells and silos share, and how accuracy is counted."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEPS, FACTOR = (60 / 200, 120 / 200, 160 / 200), 0.2
"""After these shares of all rounds the learning rate becomes so many times what it was."""


def rate(base: float, index: int, rounds: int) -> float:
    """The learning rate of a round or an epoch, from 0: lower after 60, 120 and 160 of 200.

    With fewer rounds, or more, it falls after the same shares of them.
    """
    return base * FACTOR ** sum(index >= round(share * rounds) for share in STEPS)


def sgd(
    model: nn.Module, *, learning_rate: float, momentum: float, weight_decay: float
) -> torch.optim.SGD:
    """The published optimizer: with Nesterov's momentum."""
    return torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        nesterov=True,
    )


def train_epoch(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], optimizer: torch.optim.Optimizer
) -> None:
    """One pass over batches that are on the model's device already."""
    model.train()
    for images, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


@torch.no_grad()
def count_right(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device | str
) -> tuple[int, int]:
    """How many pictures a model names rightly, and of how many. It is put into eval mode."""
    model.to(device).eval()
    right = total = 0
    for images, labels in batches:
        right += int((model(images.to(device)).argmax(1) == labels.to(device)).sum())
        total += len(labels)
    return right, total
