"""Kinds of layers."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

__all__ = ["CONVOLUTIONS", "EMBEDDINGS", "LEARNED", "LOCKABLE", "NORMS", "PARAMETRIC"]

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
