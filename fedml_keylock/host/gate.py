"""The gates: what may leave a silo, and what server and silos may take in."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import UpdateRefused
from ..types import Agreement

__all__ = ["MARK", "check_mark", "check_samples", "check_state", "public_copy"]

MARK = "keylock"
"""Name of the message entry that says which agreement the sender works under."""

TOLERANCE = 1e-3
"""How far an average of constants may be from the constant: float32 rounding, with a margin."""


def check_state(
    state: Any, agreement: Agreement, *, who: str, averaged: bool = False
) -> Mapping[str, Tensor]:
    """The state, when it is the public state of a protected model and nothing else.

    Args:
        state: what is about to be sent or taken in.
        agreement: what it must be.
        who: whose it is, as the message begins.
        averaged: it is an average of silos' states, which FedML turns into floating point.

    Raises:
        UpdateRefused: naming the first entry that is not as agreed.

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
            raise UpdateRefused(f"{who}: {name} is not a public name of the model")
    for name, shape in agreement.shapes.items():
        if name not in state:
            raise UpdateRefused(f"{who}: {name} is missing")
        tensor, dtype = state[name], agreement.dtypes[name]
        if not isinstance(tensor, Tensor):
            raise UpdateRefused(f"{who}: {name} is a {type(tensor).__name__}, not a tensor")
        if tuple(tensor.shape) != shape:
            raise UpdateRefused(f"{who}: {name} has shape {tuple(tensor.shape)}, not {shape}")
        if tensor.dtype != dtype and not (averaged and tensor.dtype.is_floating_point):
            raise UpdateRefused(f"{who}: {name} is {tensor.dtype}, not {dtype}")
        if tensor.dtype.is_floating_point and not torch.isfinite(tensor).all():
            raise UpdateRefused(f"{who}: {name} is not finite (NaN or infinity)")
    for name, constant in agreement.constants.items():
        off = (state[name].double() - constant).abs().max().item() if state[name].numel() else 0.0
        if off > (TOLERANCE if averaged else 0.0):
            raise UpdateRefused(
                f"{who}: {name} is not the constant {constant:g} that a locked layer shares"
            )
    return state


def public_copy(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A checked state, ready to be sent: the tensors themselves, and nothing that hangs on them.

    Pickling a tensor sends the whole memory that it is a view of, which may hold more than the
    tensor; such a tensor is copied. Module versions that say nothing are left out.
    """
    clean: dict[str, Tensor] = OrderedDict() if isinstance(state, OrderedDict) else {}
    for name, tensor in state.items():
        bare = tensor.detach()
        if bare.untyped_storage().nbytes() != bare.numel() * bare.element_size():
            bare = bare.clone()
        clean[name] = bare
    metadata = getattr(state, "_metadata", None)
    if metadata:
        # 1 is every module's version unless its class says otherwise, and loading a state without
        # versions is the same as loading version 1
        kept = OrderedDict((k, v) for k, v in metadata.items() if v.get("version", 1) != 1)
        clean._metadata = kept  # type: ignore[attr-defined]  # torch keeps it on the dict itself
    return clean


def check_mark(mark: Any, agreement: Agreement, *, who: str) -> None:
    """Check that another rank works under the same agreement.

    Raises:
        UpdateRefused: naming what differs, or that there is no mark.

    """
    if mark is None:
        raise UpdateRefused(
            f"{who}: its messages are not locked: the plugin is not active there, or the flag is "
            "off. Start every rank with `python -m fedml_keylock` and the same YAML"
        )
    if not isinstance(mark, str) or mark != agreement.mark:
        part = agreement.difference(mark if isinstance(mark, str) else "")
        raise UpdateRefused(
            f"{who}: its {part} differ from the server's; use the same YAML and code"
        )


def check_samples(samples: Any, *, who: str) -> float:
    """Check a number that a silo sends, such as its weight in the average, and return it.

    Raises:
        UpdateRefused: it is not one positive, finite number. The value itself is not shown: what a
            silo was about to send may be private.

    Example:
        >>> check_samples(torch.tensor(3), who="silo 0")
        3.0

    """
    try:
        number = float(samples)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if isinstance(samples, (str, bytes)) or not math.isfinite(number) or number <= 0:
        kind = type(samples).__name__
        raise UpdateRefused(f"{who} is a {kind}, not a positive number")
    return number
