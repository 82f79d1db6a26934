"""Chooses how each tensor of a payload is encoded: by name, shape and type only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...errors import UpdateRefused

__all__ = ["Entry", "Kind", "entries_of"]

Kind = Literal["matrix", "vector", "double", "integer", "noised"]


@dataclass(frozen=True)
class Entry:
    """One tensor of a payload, and its encoding.

    Attributes:
        name: in the payload.
        shape: of the tensor; complex numbers add a last dimension of 2. On the wire it is ``(2,
            *shape)`` where entries take two words.
        dtype: of the tensor; for complex numbers, of their parts.
        kind: ``matrix`` takes one word an entry. ``vector`` (floating point that extends in at most
            one dimension, such as biases and scales of channels), ``double`` (float64) and
            ``integer`` take two. A tensor of two dimensions is a matrix, even with one row.
            ``noised`` takes one, for any tensor.
        complex: whether its numbers are complex.

    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: Kind
    complex: bool = False

    @property
    def numel(self) -> int:
        """How many entries the tensor has."""
        return math.prod(self.shape)

    @property
    def wire_shape(self) -> tuple[int, ...]:
        """The shape of its words on the wire."""
        return self.shape if self.kind in ("matrix", "noised") else (2, *self.shape)


def entries_of(state: Mapping[str, Tensor]) -> tuple[Entry, ...]:
    """How the tensors of a payload are encoded, sorted by name.

    It depends on names, shapes and types, never on values.

    Raises:
        UpdateRefused: a tensor is quantised, or floating point of 8 bits.

    Example:
        >>> state = {"w": torch.zeros(2, 3), "b": torch.zeros(2), "n": torch.tensor(4)}
        >>> [(entry.name, entry.kind) for entry in entries_of(state)]
        [('b', 'vector'), ('n', 'integer'), ('w', 'matrix')]

    """
    return tuple(_entry(name, state[name]) for name in sorted(state))


def _entry(name: str, tensor: Tensor) -> Entry:
    dtype = tensor.dtype
    small = dtype.is_floating_point and dtype.itemsize == 1
    if tensor.is_quantized or small or dtype == torch.uint64:
        raise UpdateRefused(
            f"{name} is {dtype}, which lock: sealed cannot add up: send it as floating point"
        )
    kind: Kind = "matrix"
    if not dtype.is_floating_point and not dtype.is_complex:
        kind = "integer"
    elif dtype in (torch.float64, torch.complex128):
        kind = "double"
    elif tensor.dim() != 2 and sum(size != 1 for size in tensor.shape) <= 1:
        kind = "vector"
    parts = (2,) * dtype.is_complex
    return Entry(name, (*tensor.shape, *parts), dtype.to_real(), kind, dtype.is_complex)
