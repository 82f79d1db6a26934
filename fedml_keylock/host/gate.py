"""The gates: what may leave a silo, and what server and silos may take in."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import UpdateRefused
from ..types import Agreement

__all__ = [
    "MARK",
    "NUMBER",
    "check_attackable",
    "check_mark",
    "check_names",
    "check_number",
    "check_samples",
    "check_state",
    "pinned",
    "public_copy",
]

MARK = "keylock"
"""Name of the message entry that says which agreement the sender works under."""

NUMBER = "keylock_job"
"""Name of the entry, beside the server's model, that is another one in each job."""

TOLERANCE = 1e-3
"""How far an average of constants may be from the constant: float32 rounding, with a margin."""


def check_state(
    state: Any,
    agreement: Agreement,
    *,
    who: str,
    averaged: bool = False,
    partial: bool = False,
) -> Mapping[str, Tensor]:
    """The state, when it is the public state of a protected model and nothing else.

    A job's own trainer may send gradients or differences in place of a state. They have its names
    and shapes, and in place of its constants all zeros, which say as little.

    Args:
        state: what is about to be sent or taken in.
        agreement: what it must be.
        who: whose it is, as the message begins.
        averaged: it is an average of silos' states, which FedML turns into floating point.
        partial: it may be a part of the state, which tells no more than the whole.

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
            raise UpdateRefused(
                f"{who}: {name} is not a public name of the model{_wrapped(name, agreement)}"
            )
    if partial and not state:
        raise UpdateRefused(f"{who}: the update is empty")
    for name, shape in agreement.shapes.items():
        if name not in state and partial:
            continue
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
    tolerance = TOLERANCE if averaged else 0.0
    wrong = _unlike(state, agreement.constants, tolerance)
    if wrong is not None and _unlike(state, dict.fromkeys(agreement.constants, 0.0), tolerance):
        constant = agreement.constants[wrong]
        raise UpdateRefused(
            f"{who}: {wrong} is not the constant {constant:g} that a locked layer shares"
        )
    return state


def check_names(state: Mapping[str, Any], others: Iterable[str], *, who: str, whose: str) -> None:
    """Check that a silo sends the names that another one sent: FedML averages name by name.

    Raises:
        UpdateRefused: naming the first that only one of them sends.

    Example:
        >>> check_names({"a": 1}, ["a", "b"], who="rank 2", whose="rank 1")
        Traceback (most recent call last):
        fedml_keylock.errors.UpdateRefused: rank 2: b is missing, which rank 1 sent; all silos must\
 send the same names

    """
    odd = sorted(state.keys() ^ set(others))
    if odd:
        how = f"is sent, and was not by {whose}" if odd[0] in state else "is missing, which "
        how += "" if odd[0] in state else f"{whose} sent"
        raise UpdateRefused(f"{who}: {odd[0]} {how}; all silos must send the same names")


def check_attackable(
    state: Mapping[str, Tensor], before: Mapping[str, Tensor], *, who: str
) -> None:
    """Check that an update is a whole state: an attack reads the gradient from what it changed.

    Args:
        state: what a silo sent.
        before: the state that it was sent.
        who: whose it is, as the message begins.

    Raises:
        UpdateRefused: names are missing, or it is nearer to nothing than to what it was sent, as
            gradients and differences are.

    Example:
        >>> check_attackable({"w": torch.tensor(0.1)}, {"w": torch.tensor(2.0)}, who="rank 1")
        Traceback (most recent call last):
        fedml_keylock.errors.UpdateRefused: rank 1: attack_type: gradient_inversion reads whole\
 states, and this update is a gradient or a difference; leave enable_attack out

    """
    what = next((f"has no {name}" for name in before if name not in state), "")
    if not what and before:
        size = sum(float(t.double().square().sum()) for t in state.values())
        moved = sum(float((t.double() - before[n]).square().sum()) for n, t in state.items())
        what = "is a gradient or a difference" if size < moved else ""
    if what:
        raise UpdateRefused(
            f"{who}: attack_type: gradient_inversion reads whole states, and this update {what}; "
            "leave enable_attack out"
        )


def pinned(state: Mapping[str, Tensor], agreement: Agreement) -> dict[str, Tensor]:
    """The constants as they should be in what noise, attacks and averaging made of a state.

    In a gradient or a difference they are all zeros, which stay.

    Example:
        >>> agreed = Agreement({"w": (2,)}, {"w": torch.float32}, {"w": 1.0}, (), {})
        >>> pinned({"w": torch.tensor([0.9, 1.2])}, agreed)
        {'w': tensor([1., 1.])}

    """
    found = {n: c for n, c in agreement.constants.items() if isinstance(state.get(n), Tensor)}
    if not any(state[n].any() for n in found):
        return {}
    return {n: torch.full_like(state[n], c) for n, c in found.items()}


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


def _wrapped(name: str, agreement: Agreement) -> str:
    """What to do about a name that DataParallel or torch.compile gave a prefix."""
    bare = re.sub(r"\b(module|_orig_mod)\.", "", name)
    if bare not in agreement.shapes:
        return ""
    return (
        f": it is {bare} behind a wrapper; send the state of the wrapped model itself "
        "(wrapper.module.state_dict() of DataParallel, ._orig_mod of torch.compile)"
    )


def public_copy(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A checked state, ready to be sent: the tensors themselves, and nothing that hangs on them.

    Pickling a tensor sends the whole memory that it is a view of, which may hold more than the
    tensor; such a tensor is copied. Of what modules say of themselves beside it, versions are left,
    where they are others than 1.
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
        versions = {k: v.get("version", 1) for k, v in metadata.items()}
        kept = OrderedDict(
            (k, {"version": v}) for k, v in versions.items() if isinstance(v, int) and v != 1
        )
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


def check_number(number: Any, *, who: str) -> bytes:
    """Check what the server calls the job, 16 bytes in hexadecimal, and return it.

    Raises:
        UpdateRefused: it is something else, or there is none.

    Example:
        >>> check_number("41" * 16, who="silo 0")
        b'AAAAAAAAAAAAAAAA'

    """
    if not isinstance(number, str) or not re.fullmatch("[0-9a-f]{32}", number):
        raise UpdateRefused(
            f"{who} came without the job's number: the plugin is not active on the server. Start "
            "every rank with `python -m fedml_keylock` and the same YAML"
        )
    return bytes.fromhex(number)


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
