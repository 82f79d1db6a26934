"""Kinds of layers."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

__all__ = ["CONVOLUTIONS", "EMBEDDINGS", "LEARNED", "LOCKABLE", "NORMS", "PARAMETRIC", "is_plain"]

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
LOCKABLE = (*CONVOLUTIONS, nn.Linear)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
LEARNED = (*LOCKABLE, *NORMS, nn.MultiheadAttention, nn.RNNBase)
PARAMETRIC = (*LEARNED, *EMBEDDINGS)
"""Modules that are nodes of their own in a trace, whatever class of the user's extends them."""
OWN = ("forward", "__call__", "_conv_forward", "weight", "bias")
"""What makes a class of the user's compute something else than the class of torch's under it."""


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer computes what torch's class does, from parameters of its own.

    Not so with a forward of the user's, with a hook in front of it, or with a weight that is made
    of other parameters. Hooks behind it get what it computes.

    Example:
        >>> is_plain(nn.Conv2d(1, 2, 3))
        True
        >>> is_plain(nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 2, 3)))
        False

    """
    kind = type(layer)
    base = next(k for k in kind.__mro__ if k.__module__.startswith("torch.nn.modules."))
    as_torch = all(
        getattr(kind, n, None) is getattr(base, n, None) and n not in vars(layer) for n in OWN
    )
    return as_torch and not layer._forward_pre_hooks
