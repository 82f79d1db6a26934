"""Tensors as they are kept: as bytes, in a digest, and as copies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from .errors import first_line

__all__ = ["copied", "fingerprint", "raw", "tensors_of"]


def tensors_of(content: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name. Nothing in it is executed, whatever it is.

    Raises:
        ValueError: it is none, or is damaged; in one line.

    Example:
        >>> from safetensors.torch import save
        >>> tensors_of(save({"key": torch.ones(2)}))
        {'key': tensor([1., 1.])}
        >>> tensors_of(b"")
        Traceback (most recent call last):
        ValueError: Error while deserializing: header too small

    """
    try:
        return load(content)
    except KeyError as error:  # safetensors itself knows more types than its part for torch
        raise ValueError(f"it has numbers of a type that cannot be read: {error}") from None
    # what it raises for types and sizes that do not fit is not of one kind
    except (SafetensorError, ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise ValueError(first_line(error)) from None


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state's tensors, each in memory of its own.

    Example:
        >>> one = torch.ones(2)
        >>> two = copied({"weight": one})
        >>> _ = one.zero_()
        >>> two
        {'weight': tensor([1., 1.])}

    """
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def raw(tensor: Tensor) -> memoryview:
    """A tensor's numbers, in order, as bytes. Without a copy where they are in memory so.

    Example:
        >>> raw(torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).t()).tolist()
        [1, 3, 2, 4]

    """
    flat = tensor.detach().cpu().contiguous().flatten()
    flat = flat.as_strided(flat.shape, (1,))  # contiguous: but of one entry, whatever it has
    return flat.view(torch.uint8).numpy().data  # numpy has no bfloat16, and bytes of everything


def fingerprint(settings: object, tensors: Iterable[Tensor]) -> str:
    """Sixteen hex digits of what a result depends on: by its repr, and by types, shapes, numbers.

    Example:
        >>> fingerprint("dlg", [torch.zeros(2)]) == fingerprint("dlg", [torch.ones(2)])
        False

    """
    digest = hashlib.sha256(repr(settings).encode())
    for tensor in tensors:
        digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(raw(tensor))
    return digest.hexdigest()[:16]
