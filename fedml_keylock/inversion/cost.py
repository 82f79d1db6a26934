"""How far a candidate's gradient is from the one that was shared.

Each function takes the gradients of all layers, each ``(b, *shape)`` with b independent candidates,
the targets in the same shapes, and ``weights`` ``(b, layers)`` (0 leaves a layer out), and returns
``(b,)`` costs that are 0 for a perfect match and do not depend on the scale of the update.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

__all__ = ["COSTS", "cosine", "squared_l2"]


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """``(b, *shape)`` twice -> ``(b,)`` inner products."""
    # a batched matrix product makes no b x shape temporary, as (left * right).sum() would
    return (left.flatten(1).unsqueeze(1) @ right.flatten(1).unsqueeze(2)).flatten()


def squared_l2(gradients: Sequence[Tensor], targets: Sequence[Tensor], weights: Tensor) -> Tensor:
    """``|g - t|^2 / |t|^2`` over all layers together (Zhu et al. 2019, equation 4).

    The division is not in the paper. It makes the tolerances of the optimiser, and the cost that is
    reported, mean the same for an untrained model and for a trained one, whose gradients are small.

    Example:
        >>> import torch
        >>> t = [torch.tensor([[3.0, 4.0]])]
        >>> squared_l2([torch.tensor([[3.0, 3.0]])], t, torch.ones(1, 1))
        tensor([0.0400])

    """
    error = weights.new_zeros(weights.shape[0])
    size = weights.new_zeros(weights.shape[0])
    for layer, (gradient, target) in enumerate(zip(gradients, targets, strict=True)):
        difference = gradient - target
        error = error + weights[:, layer] * _dot(difference, difference)
        size = size + weights[:, layer] * _dot(target, target)
    return error / size


def cosine(gradients: Sequence[Tensor], targets: Sequence[Tensor], weights: Tensor) -> Tensor:
    """``1 - <g, t> / (|g| |t|)`` over all layers together (Geiping et al. 2020, equation 4).

    Example:
        >>> import torch
        >>> cosine([torch.tensor([[6.0, 8.0]])], [torch.tensor([[3.0, 4.0]])], torch.ones(1, 1))
        tensor([0.])

    """
    dot = weights.new_zeros(weights.shape[0])
    gradient_size = weights.new_zeros(weights.shape[0])
    target_size = weights.new_zeros(weights.shape[0])
    for layer, (gradient, target) in enumerate(zip(gradients, targets, strict=True)):
        dot = dot + weights[:, layer] * _dot(gradient, target)
        gradient_size = gradient_size + weights[:, layer] * _dot(gradient, gradient)
        target_size = target_size + weights[:, layer] * _dot(target, target)
    return 1 - dot / (gradient_size * target_size).sqrt()


COSTS = {"cosine": cosine, "squared_l2": squared_l2}
