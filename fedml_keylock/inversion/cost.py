"""Costs: distances of candidates' gradients from the shared gradient.

Each function takes the gradients of all layers, each ``(b, *shape)`` for b independent candidates,
the targets in the same shapes, and ``weights`` ``(b, layers)``; 0 leaves a layer out. It returns
costs ``(b,)``, which are 0 for a perfect match and independent of the update's scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

__all__ = ["COSTS", "cosine", "l1", "l2_twice", "l2_wasserstein", "squared_l2", "wasserstein"]


class _Products(Function):
    """Inner products ``(b,)`` of each candidate's left with its right, and of left with itself.

    A single function, so that its gradient needs only one pass over the many entries.
    """

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(left, right)
        return (left * right).flatten(1).sum(1), _square(left)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        left, right = ctx.saved_tensors
        cross, own = (part.view(-1, *[1] * (left.dim() - 1)) for part in outer)
        return torch.addcmul(cross * right, left, 2 * own), None


def _square(value: Tensor) -> Tensor:
    """Sums of squares: ``(b, *shape)`` to ``(b,)``."""
    norm: Tensor = torch.linalg.vector_norm(value.flatten(1), dim=1)
    return norm.square()


def _relative(
    gradients: Sequence[Tensor],
    targets: Sequence[Tensor],
    weights: Tensor,
    distance: Callable[[Tensor, Tensor], Tensor],
    size: Callable[[Tensor], Tensor],
) -> Tensor:
    """The weighted sum of the layers' distances, relative to that of the targets' norms."""
    error = weights.new_zeros(weights.shape[0])
    whole = weights.new_zeros(weights.shape[0])
    for layer, (gradient, target) in enumerate(zip(gradients, targets, strict=True)):
        error = error + weights[:, layer] * distance(gradient, target)
        whole = whole + weights[:, layer] * size(target)
    return error / whole


def squared_l2(gradients: Sequence[Tensor], targets: Sequence[Tensor], weights: Tensor) -> Tensor:
    """``|g - t|^2 / |t|^2`` over all layers together (Zhu et al. 2019, equation 4).

    The division is not in the paper. With it, tolerances and costs are comparable between untrained
    models and trained ones, whose gradients are small.

    Example:
        >>> t = [torch.tensor([[3.0, 4.0]])]
        >>> squared_l2([torch.tensor([[3.0, 3.0]])], t, torch.ones(1, 1))
        tensor([0.0400])

    """
    return _relative(gradients, targets, weights, lambda g, t: _square(g - t), _square)


def cosine(gradients: Sequence[Tensor], targets: Sequence[Tensor], weights: Tensor) -> Tensor:
    """``1 - <g, t> / (|g| |t|)`` over all layers together (Geiping et al. 2020, equation 4).

    Example:
        >>> cosine([torch.tensor([[6.0, 8.0]])], [torch.tensor([[3.0, 4.0]])], torch.ones(1, 1))
        tensor([0.])

    """
    dot = weights.new_zeros(weights.shape[0])
    gradient_size = weights.new_zeros(weights.shape[0])
    target_size = weights.new_zeros(weights.shape[0])
    for layer, (gradient, target) in enumerate(zip(gradients, targets, strict=True)):
        product, square = _Products.apply(gradient, target)
        dot = dot + weights[:, layer] * product
        gradient_size = gradient_size + weights[:, layer] * square
        target_size = target_size + weights[:, layer] * _square(target)
    return 1 - dot / (gradient_size * target_size).sqrt()


def l1(gradients: Sequence[Tensor], targets: Sequence[Tensor], weights: Tensor) -> Tensor:
    """``sum |g - t| / sum |t|`` over all layers together, by entry (TAG, Deng et al. 2021).

    TAG adds its L1 term to an L2 one; this is the L1 term alone, relative to the target.

    Example:
        >>> t = [torch.tensor([[3.0, -1.0]])]
        >>> l1([torch.tensor([[2.0, -2.0]])], t, torch.ones(1, 1))
        tensor([0.5000])

    """

    def size(value: Tensor) -> Tensor:
        return value.abs().flatten(1).sum(1)

    return _relative(gradients, targets, weights, lambda g, t: size(g - t), size)


def wasserstein(gradients: Sequence[Tensor], targets: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The 1-Wasserstein distance of each layer's entries, summed over layers (GRNN, Ren 2022).

    A layer's distance is between the distributions of its entries: the mean of
    ``|sort(g) - sort(t)|``. The sum is divided by the cost of all-zero gradients. A permutation of
    the entries costs nothing, and so GRNN adds it to an L2 cost.

    Example:
        >>> t = [torch.tensor([[3.0, -1.0]])]
        >>> wasserstein([torch.tensor([[-1.0, 2.0]])], t, torch.ones(1, 1))
        tensor([0.2500])

    """

    def apart(gradient: Tensor, target: Tensor) -> Tensor:
        sorted_apart = gradient.flatten(1).sort(1).values - target.flatten(1).sort(1).values
        return sorted_apart.abs().mean(1)

    return _relative(gradients, targets, weights, apart, lambda t: t.flatten(1).abs().mean(1))


def l2_wasserstein(
    gradients: Sequence[Tensor], targets: Sequence[Tensor], weights: Tensor
) -> Tensor:
    """``squared_l2`` plus ``wasserstein``: GRNN's distance as in its paper (Ren et al. 2022).

    Both terms are relative to the target here, which weighs them differently than the paper.
    """
    return squared_l2(gradients, targets, weights) + wasserstein(gradients, targets, weights)


def l2_twice(gradients: Sequence[Tensor], targets: Sequence[Tensor], weights: Tensor) -> Tensor:
    """``r^2 + r`` with ``r = |g - t| / |t|``: GRNN's distance as in its code (Ren et al. 2022).

    That code computes its Wasserstein distance as the L2 norm of the difference.

    Example:
        >>> t = [torch.tensor([[3.0, 4.0]])]
        >>> l2_twice([torch.tensor([[3.0, 3.0]])], t, torch.ones(1, 1))
        tensor([0.2400])

    """
    squared = squared_l2(gradients, targets, weights)
    # the root has no gradient at 0
    return squared + squared.clamp(min=1e-20).sqrt()


COSTS = {
    "cosine": cosine,
    "squared_l2": squared_l2,
    "l1": l1,
    "wasserstein": wasserstein,
    "l2_twice": l2_twice,
    "l2_wasserstein": l2_wasserstein,
}
