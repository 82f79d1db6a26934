"""Checks the public state of a protected model; nothing else may cross between silo and server."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UpdateRefused
from ..tensors import sparse
from ..types import Agreement

__all__ = ["check_payload", "check_state", "check_words", "pinned", "public_copy"]

TOLERANCE = 1e-3
"""How far an average of constants may be off: float32 rounding, with a margin."""


def check_payload(state: Any, *, who: str) -> Mapping[str, Tensor]:
    """The state, if it is a mapping of names to tensors.

    Raises:
        UpdateRefused: it is anything else, or empty.

    Example:
        >>> check_payload({"w": "1"}, who="silo 0")
        Traceback (most recent call last):
        fedml_keylock.errors.UpdateRefused: silo 0: w is a str, not a tensor

    """
    if not isinstance(state, Mapping):
        raise UpdateRefused(f"{who}: the update is a {type(state).__name__}, not a state dict")
    if not state:
        raise UpdateRefused(f"{who}: the update is empty")
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            hint = (
                ": send torch.as_tensor of it" if isinstance(tensor, (Number, np.ndarray)) else ""
            )
            raise UpdateRefused(f"{who}: {name} is a {kind}, not a tensor{hint}")
        if problem := sparse(tensor):
            raise UpdateRefused(f"{who}: {name} {problem}")
    return state


def check_words(state: Any, *, who: str) -> Mapping[str, Tensor]:
    """The state, if it holds nothing but sealed words: tensors of int32.

    Raises:
        UpdateRefused: naming the first other entry.

    Example:
        >>> check_words({"w": torch.zeros(2)}, who="rank 1")
        Traceback (most recent call last):
        fedml_keylock.errors.UpdateRefused: rank 1: w is torch.float32, and sealed words are int32

    """
    for name, tensor in check_payload(state, who=who).items():
        if tensor.dtype != torch.int32:
            raise UpdateRefused(f"{who}: {name} is {tensor.dtype}, and sealed words are int32")
    words: Mapping[str, Tensor] = state
    return words


def check_state(
    state: Any,
    agreement: Agreement,
    *,
    who: str,
    averaged: bool = False,
    partial: bool = False,
) -> Mapping[str, Tensor]:
    """The state, if it is the public state of a protected model and nothing else.

    A job's own trainer may send gradients or differences in place of a state. They have the state's
    names and shapes, and zeros in place of constants, which reveal as little.

    Args:
        state: to be sent or loaded.
        agreement: what it must match.
        who: whose it is, as the message begins.
        averaged: whether it is an average of silos' states, which FedML makes floating point.
        partial: whether it may be a part of the state, which reveals no more than the whole.

    Raises:
        UpdateRefused: naming the first entry that does not match, or is not finite. Infinite
            numbers are allowed where the model has them from the start.

    Example:
        >>> agreed = Agreement({"w": (2,)}, {"w": torch.float32}, {}, (), {})
        >>> check_state({"w": torch.zeros(2), "k": torch.ones(1)}, agreed, who="silo 0")
        Traceback (most recent call last):
        fedml_keylock.errors.UpdateRefused: silo 0: k is not a public name of the model

    """
    if not isinstance(state, Mapping):
        raise UpdateRefused(f"{who}: the update is a {type(state).__name__}, not a state dict")
    for name in state:
        if name not in agreement.shapes:
            raise UpdateRefused(
                f"{who}: {name} is not a public name of the model{_unwrap_hint(name, agreement)}"
            )
    if partial and not state:
        raise UpdateRefused(f"{who}: the update is empty")
    for name in agreement.shapes:
        if name in state:
            if problem := _tensor_problem(state[name], name, agreement, averaged=averaged):
                raise UpdateRefused(f"{who}: {name} {problem}")
        elif not partial:
            raise UpdateRefused(f"{who}: {name} is missing")
    tolerance = TOLERANCE if averaged else 0.0
    wrong = _unlike(state, agreement.constants, tolerance)
    if wrong is not None and _unlike(state, dict.fromkeys(agreement.constants, 0.0), tolerance):
        constant = agreement.constants[wrong]
        raise UpdateRefused(
            f"{who}: {wrong} is not the constant {constant:g} that a locked layer shares"
        )
    return state


def pinned(state: Mapping[str, Tensor], agreement: Agreement) -> dict[str, Tensor]:
    """The agreed constants, for a state in which noise, attacks or averaging changed them.

    In a gradient or a difference they are all zeros, and stay so.

    Example:
        >>> agreed = Agreement({"w": (2,)}, {"w": torch.float32}, {"w": 1.0}, (), {})
        >>> pinned({"w": torch.tensor([0.9, 1.2])}, agreed)
        {'w': tensor([1., 1.])}

    """
    found = {n: c for n, c in agreement.constants.items() if isinstance(state.get(n), Tensor)}
    if not any(state[n].any() for n in found):
        return {}
    return {n: torch.full_like(state[n], c) for n, c in found.items()}


def public_copy(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A checked state, ready to send: the tensors, and nothing attached to them.

    Pickling a tensor sends the whole memory that it is a view of, which may hold more than the
    tensor; such tensors are copied. Of the modules' metadata, only versions other than 1 remain.
    """
    clean: dict[str, Tensor] = OrderedDict() if isinstance(state, OrderedDict) else {}
    for name, tensor in state.items():
        bare = tensor.detach()
        if bare.untyped_storage().nbytes() != bare.numel() * bare.element_size():
            bare = bare.clone()
        clean[name] = bare
    metadata = getattr(state, "_metadata", None)
    if metadata:
        # a module's version is 1 unless its class says otherwise, and loading a state without
        # versions equals loading version 1
        versions = {k: v.get("version", 1) for k, v in metadata.items()}
        kept = OrderedDict(
            (k, {"version": v}) for k, v in versions.items() if isinstance(v, int) and v != 1
        )
        clean._metadata = kept  # type: ignore[attr-defined]  # torch keeps it on the dict itself
    return clean


def _tensor_problem(tensor: Any, name: str, agreement: Agreement, *, averaged: bool) -> str | None:
    """Why an entry of a state is not the agreed tensor; None if it is."""
    shape, dtype = agreement.shapes[name], agreement.dtypes[name]
    if not isinstance(tensor, Tensor):
        return f"is a {type(tensor).__name__}, not a tensor"
    if problem := sparse(tensor):
        return problem
    if tuple(tensor.shape) != shape:
        return f"has shape {tuple(tensor.shape)}, not {shape}"
    if tensor.dtype != dtype and not (averaged and tensor.dtype.is_floating_point):
        return f"is {tensor.dtype}, not {dtype}"
    odd = torch.isnan if name in agreement.infinite else _not_finite
    if (tensor.is_floating_point() or tensor.is_complex()) and odd(tensor).any():
        return "is not finite (NaN or infinity)"
    return None


def _not_finite(tensor: Tensor) -> Tensor:
    return ~torch.isfinite(tensor)


def _unlike(
    state: Mapping[str, Tensor], constants: Mapping[str, float], tolerance: float
) -> str | None:
    """The first name whose tensor is not its constant."""
    for name, constant in constants.items():
        tensor = state.get(name)
        if tensor is None or not tensor.numel():
            continue
        if (tensor.double() - constant).abs().max().item() > tolerance:
            return name
    return None


def _unwrap_hint(name: str, agreement: Agreement) -> str:
    """A remedy for a name that has a prefix from DataParallel or torch.compile."""
    bare = re.sub(r"\b(module|_orig_mod)\.", "", name)
    if bare not in agreement.shapes:
        return ""
    return (
        f": it is {bare} behind a wrapper; send the state of the wrapped model itself "
        "(wrapper.module.state_dict() of DataParallel, ._orig_mod of torch.compile)"
    )
