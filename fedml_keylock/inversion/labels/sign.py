"""Recovers a batch's labels by the sign of the head's gradient, each class at most once."""

from __future__ import annotations

from torch import Tensor

from ...errors import AttackError
from .head import check_gradients

__all__ = ["labels_by_sign"]


def labels_by_sign(weight: Tensor, bias: Tensor | None, batch: int) -> Tensor:
    """The n classes with the most negative entry in their row of the weight's gradient.

    Yin et al., "See through gradients", CVPR 2021 (arXiv 2104.07586), section on batch label
    restoration: ``argsort(min over features)[:n]``.

    It assumes that the head's inputs are not negative (ReLU, sigmoid), since then only a class that
    is present can have a negative entry; and that **no label occurs twice**: the n labels that it
    returns always differ. It works for trained models as well.

    For arguments, results and errors see ``RECOVERIES``; also refuses fewer classes than images,
    where some label must repeat. The bias is not used.

    Example:
        >>> import torch
        >>> gradient = torch.tensor([[[0.2, -0.5], [0.1, 0.3], [-0.4, 0.2]]])
        >>> labels_by_sign(gradient, None, 2)
        tensor([[0, 2]])

    """
    check_gradients(weight, bias, batch)
    if batch > weight.shape[1]:
        raise AttackError(
            f"labels by sign never repeat: a batch of {batch} cannot have that many of "
            f"{weight.shape[1]} classes; set recovery: magnitude or bias"
        )
    return weight.amin(2).argsort(dim=1, stable=True)[:, :batch].sort(1).values
