"""Names the kinds of layers that a lock distinguishes."""

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
"""Modules that are single nodes in a trace, also when the user's class extends them."""
OWN = ("forward", "__call__", "_conv_forward", "weight", "bias")
"""Attributes that, if overridden, change what the layer computes."""


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer computes what torch's class does, from its own parameters.

    False for a layer with a forward of the user's, a forward pre-hook, or a reparametrised weight.
    Forward hooks do not matter: they get the layer's output.

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
