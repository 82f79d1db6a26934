"""Recovers the label of an update of one image, exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import AttackError

__all__ = ["label_of_one", "label_of_smoothed"]


def label_of_one(weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The label of each update of one image (iDLG, Zhao et al. 2020).

    With softmax and cross entropy the gradient of logit i is ``p_i - y_i``, negative only for the
    true class. It is the bias's gradient itself. The weight's gradient is its outer product with
    the head's input, so the true class's row points against all other rows.

    From the gradients of the head's weight ``(u, classes, features)`` and bias ``(u, classes)``, or
    of the weight alone, ``(u,)`` labels.

    Example:
        >>> label_of_one(torch.tensor([[[0.2, -0.1], [-0.4, 0.2], [0.2, -0.1]]]))
        tensor([1])

    """
    if bias is not None:
        return bias.argmin(1)
    products = weight @ weight.transpose(1, 2)
    # the diagonal is a row's own square, and shows nothing of the others
    products = products - torch.diag_embed(products.diagonal(dim1=1, dim2=2))
    return products.sum(2).argmin(1)


def label_of_smoothed(bias: Tensor | None, smoothing: float) -> Tensor:
    """The label of each update of one image, under cross entropy with smoothed labels.

    The gradient of logit i is ``p_i - (1 - s) y_i - s / C``. For other classes it is at least
    ``-s / C``, so an entry below is the label's. If none is below, the model is more confident than
    the smoothed label, and any class may be the label.

    From the gradient of the head's bias ``(u, classes)``, ``(u,)`` labels.

    Raises:
        AttackError: the head has no bias, or the model is that confident.

    Example:
        >>> label_of_smoothed(torch.tensor([[0.30, -0.31, 0.01]]), 0.1)
        tensor([1])

    """
    if bias is None:
        raise AttackError(
            "smoothed labels are read off the head's bias, and it has none; set labels: optimise"
        )
    least, label = bias.min(1)
    if (least > -smoothing / bias.shape[1] * (1 + 1e-3) - 1e-6).any():
        raise AttackError(
            f"the model is surer of an image than its label, smoothed by {smoothing:g}, so that "
            "the gradient does not tell it; set labels: optimise"
        )
    return label
