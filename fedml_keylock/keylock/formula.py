"""How gamma, beta and the mixing are applied (arXiv 2305.04095, equations 5 to 7)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .pieces import turn

__all__ = ["ACTIVATIONS", "EPS", "apply_lock", "mix"]

EPS = 1e-5
"""Of the norm that a lock brings."""

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "identity": lambda x: x,
}


def mix(x: Tensor, mixing: Tensor | None, *, channel_dim: int) -> Tensor:
    """``mixing x`` along the channels of x; x itself without a mixing.

    Args:
        x: ``(n, c, ...)`` with channel_dim 1, or ``(..., c)`` with channel_dim -1.
        mixing: ``(c, c)``, or of another form (`turn`); None for the published lock.
        channel_dim: 1 or -1.

    Example:
        >>> mix(torch.ones(1, 2, 3), torch.ones(2, 2), channel_dim=1).sum()
        tensor(12.)

    """
    if mixing is None:
        return x
    last = channel_dim == -1 or x.dim() == 2
    if not last:
        return turn(mixing, x.flatten(2)).reshape(x.shape)
    return F.linear(x, mixing) if mixing.dim() == 2 else turn(mixing, x[..., None])[..., 0]


def apply_lock(
    x: Tensor, gamma: Tensor, beta: Tensor, mixing: Tensor | None, *, channel_dim: int
) -> Tensor:
    """``mixing (gamma * x + beta)`` along one dimension of x (arXiv 2305.04095, equation 7).

    Args:
        x: ``(n, c, ...)`` with channel_dim 1, or ``(..., c)`` with channel_dim -1; normalised.
        gamma: ``(c,)`` scale.
        beta: ``(c,)`` shift.
        mixing: ``(c, c)``, or None for the published lock.
        channel_dim: 1 or -1.

    Example:
        >>> apply_lock(torch.ones(1, 2, 3), torch.ones(2), torch.ones(2), None, channel_dim=1).sum()
        tensor(12.)

    """
    if channel_dim == 1:
        shape = (-1, *[1] * (x.dim() - 2))
        gamma, beta = gamma.view(shape), beta.view(shape)
    return mix(torch.addcmul(beta, gamma, x), mixing, channel_dim=channel_dim)
