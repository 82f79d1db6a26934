"""Labels of a batch by the sign of the head's gradient, none of them twice."""

from __future__ import annotations

from torch import Tensor

from ...errors import AttackError
from .head import check_gradients

__all__ = ["labels_by_sign"]


def labels_by_sign(weight: Tensor, bias: Tensor | None, batch: int) -> Tensor:
    """The n classes whose row of the weight's gradient reaches furthest below 0.

    Yin et al., "See through gradients", CVPR 2021 (arXiv 2104.07586), section on batch label
    restoration: ``argsort(min over features)[:n]``.

    It assumes that the head's inputs are not negative (ReLU, sigmoid), for then only a class that
    is present can have a negative entry; and that **no label occurs twice**: the n labels that it
    returns always differ. Training does not matter to it.

    Takes, returns and refuses what ``RECOVERIES`` says, and fewer classes than images, of which
    some label must repeat; the bias is not used.

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
