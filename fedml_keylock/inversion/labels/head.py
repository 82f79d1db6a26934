"""Finds a model's last linear layer and its gradients in an update, and makes labels of counts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...errors import AttackError
from ...tensors import under

__all__ = ["check_gradients", "find_head", "head_gradients", "labels_of_counts"]


def find_head(model: nn.Module, classes: int) -> tuple[str, str | None]:
    """Names of the weight and bias (or None) of the last linear layer with one output a class.

    Raises an AttackError if no linear layer of the model has that many outputs.

    Example:
        >>> find_head(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), classes=3)
        ('1.weight', '1.bias')

    """
    heads = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == classes
    ]
    if not heads:
        raise AttackError(
            f"labels cannot be recovered: the model has no linear layer with {classes} outputs; "
            "give Knowledge.labels, or take an attack with labels: optimise"
        )
    name, module = heads[-1]
    return under(name, "weight"), None if module.bias is None else under(name, "bias")


def head_gradients(
    model: nn.Module, gradients: Mapping[str, Tensor], classes: int
) -> tuple[Tensor, Tensor | None]:
    """The gradients of the head's weight ``(u, classes, features)`` and bias ``(u, classes)``.

    They are taken from an update's gradients, name to ``(u, *shape)``. The bias may be None. Raises
    an AttackError if the model has no such head, or the update does not contain it.

    Example:
        >>> model = nn.Linear(4, 3, bias=False)
        >>> head_gradients(model, {"weight": torch.ones(1, 3, 4)}, 3)[0].shape
        torch.Size([1, 3, 4])

    """
    weight, bias = find_head(model, classes)
    for name in filter(None, (weight, bias)):
        if name not in gradients:
            raise AttackError(f"labels cannot be recovered: {name} is not in the update")
    return gradients[weight], None if bias is None else gradients[bias]


def check_gradients(weight: Tensor, bias: Tensor | None, batch: int) -> None:
    """Raise an AttackError for gradients that no method of recovering labels can use.

    The arguments are those of ``labels.RECOVERIES``.
    """
    if weight.ndim != 3:
        raise AttackError(
            f"the head's weight gradient is {tuple(weight.shape)}: not (updates, classes, features)"
        )
    if bias is not None and bias.shape != weight.shape[:2]:
        raise AttackError(
            f"the head's bias gradient is {tuple(bias.shape)} where "
            f"{tuple(weight.shape[:2])} is needed"
        )
    if batch < 1:
        raise AttackError(f"a batch has at least 1 image, not {batch}")
    for name, gradient in (("weight", weight), ("bias", bias)):
        if gradient is not None and not gradient.isfinite().all():
            raise AttackError(f"the head's {name} gradient has NaN or infinite values")
    if not weight.flatten(1).any(1).all():
        raise AttackError("the head's weight gradient is all zero: it says nothing of the labels")


def labels_of_counts(counts: Tensor) -> Tensor:
    """Sorted labels ``(u, n)`` from how often each class occurs: ``(u, classes)`` integers.

    Raises an AttackError for counts below 0, and for rows that do not sum to the same n.

    Example:
        >>> labels_of_counts(torch.tensor([[2, 0, 1], [0, 3, 0]]))
        tensor([[0, 0, 2],
                [1, 1, 1]])

    """
    sums = counts.sum(1)
    if (counts < 0).any() or (sums != sums[:1]).any():
        raise AttackError("counts must not be below 0 and must sum to the same batch in every row")
    updates, classes = counts.shape
    labels = torch.arange(classes, device=counts.device).repeat(updates)
    return labels.repeat_interleave(counts.flatten()).view(updates, -1)
