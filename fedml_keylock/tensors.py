"""Tensors as bytes: what a file holds, whoever wrote it."""

from __future__ import annotations

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from .errors import first_line

__all__ = ["tensors_of"]


def tensors_of(content: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name. Nothing in it is executed, whatever it is.

    Raises:
        ValueError: it is none, or is damaged; in one line.

    Example:
        >>> import torch
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
