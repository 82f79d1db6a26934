"""Reads a batch's normalisation statistics from an update that shares running statistics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import AttackError, reason_of
from ...inversion.engine.layer_inputs import watch
from ...tensors import copy_of
from ...types import ClientUpdate

__all__ = ["shared_statistics"]


def shared_statistics(
    model: nn.Module, updates: Sequence[ClientUpdate], images: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Batch statistics that each BatchNorm saw in the single step behind each update.

    Running statistics move by ``momentum`` towards those of the batch, so that two of them give the
    batch's exactly. The running variance is over n - 1 values, and the result over n, as the layer
    normalises.

    Takes the attacker's model, u updates of one step each, and images ``(n, c, h, w)`` for their
    shape. Returns module name to mean and variance, each ``(u, channels)``.

    Raises:
        AttackError: no update holds such statistics.

    Example:
        >>> from .training import probe
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(),
        ...                     nn.Linear(200, 3))
        >>> subject = probe(net, torch.rand(1, 1, 12, 12), torch.tensor([0]))
        >>> mean, variance = shared_statistics(net, subject.updates, subject.images[0])["1"]
        >>> mean.shape
        torch.Size([1, 2])

    """
    copy = copy_of(model).train()
    norms = {
        name: module
        for name, module in copy.named_modules()
        if isinstance(module, _BatchNorm)
        and module.momentum is not None
        and all(_moved(update, f"{name}.running_mean") for update in updates)
    }
    if not norms:
        raise AttackError(
            "level 'statistics' needs those of a BatchNorm, and none are shared: a lock keeps "
            "them unless its YAML says share_norm_statistics: true"
        )
    calls, error = watch(copy, norms, images)
    if error is not None:
        raise AttackError(f"the model does not run on its images: {reason_of(error)}") from error
    found = {}
    for name, _, got in calls:
        assert got is not None  # a BatchNorm takes a tensor
        n, momentum = got.numel() // got.shape[1], float(norms[name].momentum or 0)
        mean, variance = (
            torch.stack([_batchs(u, f"{name}.running_{what}", momentum) for u in updates])
            for what in ("mean", "var")
        )
        found[name] = mean, (variance * (n - 1) / n).clamp(min=0)
    return found


def _moved(update: ClientUpdate, name: str) -> bool:
    """Whether the update holds the tensor, and not a constant in its place."""
    return name in update.after and not torch.equal(update.after[name], update.before[name])


def _batchs(update: ClientUpdate, name: str, momentum: float) -> Tensor:
    """The batch's statistic, from the running statistic before and after."""
    return (update.after[name] - (1 - momentum) * update.before[name]) / momentum
