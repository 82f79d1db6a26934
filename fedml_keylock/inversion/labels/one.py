"""The label of an update of one image: exact."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["label_of_one"]


def label_of_one(weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The label of each update that was computed from one image (iDLG, Zhao et al. 2020).

    With softmax and cross entropy the gradient of logit i is ``p_i - y_i``: negative for the true
    class alone. It is the bias's gradient itself; and the weight's gradient is its outer product
    with the head's input, so the true class's row points against the rows of all others.

    From the gradients of the head's weight ``(u, classes, features)`` and bias ``(u, classes)``, or
    of the weight alone, ``(u,)`` labels.

    Example:
        >>> label_of_one(torch.tensor([[[0.2, -0.1], [-0.4, 0.2], [0.2, -0.1]]]))
        tensor([1])

    """
    if bias is not None:
        return bias.argmin(1)
    products = weight @ weight.transpose(1, 2)
    # the diagonal is a row's own square: it says nothing of the others
    products = products - torch.diag_embed(products.diagonal(dim1=1, dim2=2))
    return products.sum(2).argmin(1)
