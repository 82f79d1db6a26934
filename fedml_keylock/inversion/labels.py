"""Labels read off the gradient of the last linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import AttackError

__all__ = ["find_head", "label_of_one"]


def find_head(model: nn.Module, classes: int) -> tuple[str, str | None]:
    """Names of the weight and bias of the last linear layer with one output a class.

    Returns:
        ``(weight, bias)``, the bias None if the layer has none.

    Raises:
        AttackError: no linear layer of the model has that many outputs.

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
            "give Knowledge.labels"
        )
    name, module = heads[-1]
    prefix = f"{name}." if name else ""
    return f"{prefix}weight", None if module.bias is None else f"{prefix}bias"


def label_of_one(weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The label of each update that was computed from one image (iDLG, Zhao et al. 2020).

    With softmax and cross entropy the gradient of logit i is ``p_i - y_i``: negative for the true
    class alone. It is the bias's gradient itself; and the weight's gradient is its outer product
    with the head's input, so the true class's row points against the rows of all others.

    Args:
        weight: ``(u, classes, features)`` gradient of the head's weight.
        bias: ``(u, classes)`` gradient of the head's bias.

    Returns:
        ``(u,)`` labels.

    Example:
        >>> import torch
        >>> label_of_one(torch.tensor([[[0.2, -0.1], [-0.4, 0.2], [0.2, -0.1]]]))
        tensor([1])

    """
    if bias is not None:
        return bias.argmin(1)
    products = weight @ weight.transpose(1, 2)
    # the diagonal is a row's own square: it says nothing of the others
    products = products - torch.diag_embed(products.diagonal(dim1=1, dim2=2))
    return products.sum(2).argmin(1)
