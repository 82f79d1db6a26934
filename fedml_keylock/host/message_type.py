"""Refuses tensors in types of messages that do not carry models, from any sender."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UpdateRefused
from .pickle_records import plain

__all__ = ["check_type"]


def check_type(
    entries: Mapping[str, Any], kind: Any, carriers: Collection[int], *, who: str
) -> None:
    """Check that a message with a tensor has a type in which FedML sends models.

    Args:
        entries: of the message.
        kind: its type.
        carriers: the types that carry a model.
        who: names the message.

    Raises:
        UpdateRefused: its type is another, known or not.

    Example:
        >>> check_type({"client_status": "ONLINE"}, 5, (3,), who="silo 0")
        >>> check_type({"a": [Tensor()]}, 5, (3,), who="silo 0")
        Traceback (most recent call last):
        fedml_keylock.errors.UpdateRefused: silo 0: a message of type 5 held a tensor in its entry\
 a; models go in messages of type 3 only

    """
    if isinstance(kind, int) and kind in carriers:
        return
    for name, value in entries.items():
        if _holds_tensor(value):
            known = ", ".join(map(str, carriers))
            raise UpdateRefused(
                f"{who}: a message of type {plain(str(kind))} held a tensor in its entry "
                f"{plain(str(name))}; models go in messages of type {known} only"
            )


def _holds_tensor(value: Any) -> bool:
    """Whether a value contains a tensor or an array; visits shared objects once."""
    left, seen = [value], set()
    while left:
        one = left.pop()
        if isinstance(one, (Tensor, torch.TypedStorage, np.ndarray)):
            return True
        if isinstance(one, (Mapping, list, tuple)) and id(one) not in seen:
            seen.add(id(one))
            left += one.values() if isinstance(one, Mapping) else one
    return False
