"""How gamma and beta are applied (arXiv 2305.04095, equations 5 to 7)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["ACTIVATIONS", "EPS", "apply_lock"]

EPS = 1e-5
"""Of the norm that a lock brings."""

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
}


def apply_lock(x: Tensor, gamma: Tensor, beta: Tensor, *, channel_dim: int) -> Tensor:
    """``gamma * x + beta`` along one dimension of x (arXiv 2305.04095, equation 7).

    Args:
        x: ``(n, c, ...)`` with channel_dim 1, or ``(..., c)`` with channel_dim -1; normalised.
        gamma: ``(c,)`` scale.
        beta: ``(c,)`` shift.
        channel_dim: 1 or -1.

    Example:
        >>> apply_lock(torch.ones(1, 2, 3), torch.ones(2), torch.ones(2), channel_dim=1).sum()
        tensor(12.)

    """
    if channel_dim == 1:
        shape = (-1, *[1] * (x.dim() - 2))
        gamma, beta = gamma.view(shape), beta.view(shape)
    return torch.addcmul(beta, gamma, x)
