"""Finds the scores in a model's return value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import AttackError

__all__ = ["described", "logits_of"]

_NAMES = ("logits", "out")  # transformers', timm's and torchvision's


def logits_of(made: Any) -> Tensor:
    """The scores among a model's outputs, for the loss.

    A tensor is the scores. In a mapping, a named tuple or an object they are the entry ``logits``
    or ``out``, or a mapping's only tensor. In any other tuple or list they are the first, as for a
    model with auxiliary heads in train mode.

    Raises:
        AttackError: describing what the model returned instead.

    Example:
        >>> import torch
        >>> logits_of({"features": torch.ones(1), "logits": torch.zeros(1)})
        tensor([0.])
        >>> logits_of((torch.zeros(1), torch.ones(1)))
        tensor([0.])

    """
    if isinstance(made, Tensor):
        return made
    entries = dict(made) if isinstance(made, Mapping) else {}
    for name in _NAMES:
        found = entries.get(name, getattr(made, name, None))
        if isinstance(found, Tensor):
            return found
    tensors = [value for value in entries.values() if isinstance(value, Tensor)]
    if len(tensors) == 1:
        return tensors[0]
    if isinstance(made, tuple | list) and made and isinstance(made[0], Tensor):
        return made[0]
    raise AttackError(
        f"the model returns {described(made)}, in which no scores can be told: let it return "
        "(n, classes) logits, alone, first in a tuple, or as 'logits' of a dict"
    )


def described(made: Any) -> str:
    """Describe what a model returned, in few words.

    Example:
        >>> import torch
        >>> described(torch.zeros(2, 3)), described({"a": 1}), described((1, 2)), described(None)
        ('a tensor (2, 3)', 'a dict of a', 'a tuple of 2', 'a NoneType')

    """
    kind = type(made).__name__
    if isinstance(made, Tensor):
        return f"a tensor {tuple(made.shape)}"
    if isinstance(made, Mapping):
        return f"a {kind} of {', '.join(map(str, made)) or 'nothing'}"
    if isinstance(made, tuple | list):
        return f"a {kind} of {len(made)}"
    return f"a {kind}"
