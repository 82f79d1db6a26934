"""Defines what messages of other ranks may hold, and how each part is built.

`pickle_records` reads them without running anything that they name.
"""

from __future__ import annotations

import io
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UpdateRefused, first_line
from .pickle_records import Budget, Build, Reader, built, plain, record_kind

__all__ = ["load"]


def load(file: io.BytesIO, *, message: type, who: str) -> Any:
    """Like `pickle.load`, for messages of states, arrays, numbers and containers.

    Args:
        file: the pickle.
        message: the host's class of messages.
        who: whose it is, as the error begins.

    Raises:
        UpdateRefused: it names or holds anything else, uses too much memory, or cannot be read.

    Example:
        >>> import pickle
        >>> from types import SimpleNamespace
        >>> state = io.BytesIO(pickle.dumps({"w": torch.ones(2)}))
        >>> load(state, message=SimpleNamespace, who="rank 2")
        {'w': tensor([1., 1.])}
        >>> load(io.BytesIO(pickle.dumps(eval)), message=SimpleNamespace, who="rank 2")
        Traceback (most recent call last):
        fedml_keylock.errors.UpdateRefused: rank 2: a message held builtins.eval, which no model or\
 number needs; nothing of it was run

    """
    name = f"{message.__module__}.{message.__qualname__}"
    envelope = record_kind(name, _message_of(message))
    try:
        budget = Budget(file.getbuffer().nbytes)
        return built(Reader(file, {**_NAMES, name: envelope}, budget).read(), budget)
    except UpdateRefused as error:
        raise UpdateRefused(f"{who}: {error}") from None
    except Exception as error:  # a damaged pickle may raise anything
        raise UpdateRefused(
            f"{who}: a message is no pickle of a model or numbers ({type(error).__name__}: "
            f"{plain(first_line(error))}); nothing of it was run"
        ) from None


def _message_of(message: type) -> Build:
    def build(args: tuple[Any, ...], state: Any, _budget: Budget) -> Any:
        usual = vars(message())
        # an attribute of another name could shadow a method
        if args or type(state) is not dict or state.keys() != usual.keys():
            return None
        if any(type(v) is dict and type(state[k]) is not dict for k, v in usual.items()):
            return None
        made: Any = object.__new__(message)
        vars(made).update(state)
        return made

    return build


def _call(function: Callable[..., Any], *signatures: tuple[type, ...]) -> Build:
    """Builds a call without a state, from arguments of exactly these types."""

    def build(args: tuple[Any, ...], state: Any, _budget: Budget) -> Any:
        fits = state is None and tuple(map(type, args)) in signatures
        return function(*args) if fits else None

    return build


_ENTRY = 160
"""Bytes of an entry of an OrderedDict."""


def _ordered(args: tuple[Any, ...], state: Any, budget: Budget) -> Any:
    budget.spend(sum(_ENTRY * len(given) for given in args if isinstance(given, dict)))
    match args, state:
        case () | (dict(),), None:
            return OrderedDict(*args)
        case () | (dict(),), {"_metadata": OrderedDict() as versions, **others} if not others:
            made = OrderedDict(*args)
            made._metadata = versions  # type: ignore[attr-defined]  # torch keeps it there
            return made
    return None


_DIMENSIONS = 64
"""The most dimensions that torch supports."""


def _tensor(args: tuple[Any, ...], state: Any, budget: Budget) -> Any:
    match args, state:
        case (
            (torch.TypedStorage() as whole, int(at), tuple(size), tuple(stride), bool(), hooks),
            None,
        ) if hooks == {}:
            steps = [*size, *stride, at]
            if (
                len(size) > _DIMENSIONS
                or len(size) != len(stride)
                or any(type(n) is not int or n < 0 for n in steps)
            ):
                return None
            last = at + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
            # torch would extend the storage by memory that this process has used for other things
            if math.prod(size) and last >= whole._size():  # type: ignore[no-untyped-call]
                return None
            # later computations allocate all entries, however small the storage
            budget.spend(math.prod(size) * whole.dtype.itemsize)
            return torch._utils._rebuild_tensor_v2(*args)  # type: ignore[no-untyped-call]
    return None


def _parameter(args: tuple[Any, ...], state: Any, budget: Budget) -> Any:
    match args, state:
        case (Tensor(), bool(), hooks), None if hooks == {}:
            return torch._utils._rebuild_parameter(*args)  # type: ignore[no-untyped-call]
    return None


_PLACE = re.compile(r"cpu|(cuda|mps|xpu)(:\d+)?")
_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
}
_IN_STORAGE = {f"torch.{name}Storage": dtype for name, dtype in _STORAGES.items()}


class _Head(Reader):
    """The head of a storage by torch.save, in which its kind is a persistent id."""

    def persistent_load(self, pid: Any) -> Any:
        return pid


def _storage(args: tuple[Any, ...], state: Any, budget: Budget) -> Any:
    """Reads torch.save's older format: torch.load would run what it names."""
    if state is not None or [type(arg) for arg in args] != [bytes]:
        return None
    (written,), file = args, io.BytesIO(*args)
    room = Budget(len(written))
    match [_Head(file, _IN_STORAGE, room).read() for _ in range(5)]:
        case [
            _,
            1001,
            _,
            ("storage", torch.dtype() as dtype, key, str(place), count, None),
            [same],
        ] if key == same and _PLACE.fullmatch(place):
            body = memoryview(written)[file.tell() :]
            fits = len(body) == 8 + count * dtype.itemsize
            if not fits or int.from_bytes(body[:8], "little") != count:
                return None
            budget.spend(len(body))
            own = torch.UntypedStorage.from_buffer(body[8:], dtype=torch.uint8)
            whole = own.to(device=torch.device(place))
            return torch.TypedStorage(  # type: ignore[no-untyped-call]
                wrap_storage=whole, dtype=dtype, _internal=True
            )
    return None


def _size(args: tuple[Any, ...], state: Any, budget: Budget) -> Any:
    match args, state:
        case (tuple(size),), None if all(type(n) is int for n in size):
            budget.spend(16 * len(size))
            return torch.Size(size)
    return None


_NUMBERS = re.compile(r"b1|[iu][1248]|f(2|4|8|12|16)|c(8|16|24|32)|[SU]\d{1,6}")
"""Allowed dtypes of numpy: numbers and texts, but no objects or fields."""


def _dtype(args: tuple[Any, ...], state: Any, budget: Budget) -> Any:
    match args, state:
        case (str(code), _, _), (3, "<" | ">" | "|" as order, None, None, None, _, _, _):
            return np.dtype(code).newbyteorder(order) if _NUMBERS.fullmatch(code) else None
    return None


def _reconstruct(args: tuple[Any, ...], state: Any, budget: Budget) -> Any:
    match args, state:
        case ("numpy.ndarray", (0,), b"b"), (1, shape, dtype, fortran, bytes(raw)):
            array = _array(raw, dtype, shape, "F" if fortran else "C", budget)
            # numpy returns these in the machine's byte order, whatever theirs is
            return None if array is None else array.astype(dtype.newbyteorder("="), copy=False)
    return None


def _frombuffer(args: tuple[Any, ...], state: Any, budget: Budget) -> Any:
    match args, state:
        case (bytes() | bytearray() as raw, dtype, shape, "C" | "F" as order), None:
            return _array(raw, dtype, shape, order, budget)
    return None


def _scalar(args: tuple[Any, ...], state: Any, budget: Budget) -> Any:
    match args, state:
        case (dtype, bytes(raw)), None:
            array = _array(raw, dtype, (), "C", budget)
            return None if array is None else array[()]
    return None


def _array(raw: bytes | bytearray, dtype: Any, shape: Any, order: Any, budget: Budget) -> Any:
    fits = isinstance(dtype, np.dtype) and type(shape) is tuple
    if not fits or any(type(n) is not int or n < 0 for n in shape):
        return None
    if math.prod(shape) * dtype.itemsize != len(raw):
        return None
    budget.spend(2 * len(raw))  # changing the byte order makes another copy
    array: np.ndarray[Any, Any] = np.ndarray(shape, dtype, raw, order=order)
    return array if array.flags.writeable else array.copy("K")


def _bytearray(args: tuple[Any, ...], state: Any, budget: Budget) -> Any:
    match args, state:
        case () | (bytes(),), None:
            budget.spend(sum(map(len, args)))
            return bytearray(*args)
    return None


_CALLS: dict[str, Build] = {
    "builtins.bytearray": _bytearray,
    "builtins.complex": _call(complex, (float, float)),
    "collections.OrderedDict": _ordered,
    "numpy.dtype": _dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.Size": _size,
    "torch.device": _call(torch.device, (str,), (str, int)),
    "torch.storage._load_from_bytes": _storage,
}
for _core in ("numpy.core", "numpy._core"):  # of numpy 1 and numpy 2
    _CALLS[f"{_core}.multiarray._reconstruct"] = _reconstruct
    _CALLS[f"{_core}.multiarray.scalar"] = _scalar
    _CALLS[f"{_core}.numeric._frombuffer"] = _frombuffer

_NAMES: Mapping[str, Any] = {
    "numpy.ndarray": "numpy.ndarray",
    **{str(v): v for v in vars(torch).values() if isinstance(v, torch.dtype)},
    **{name: record_kind(name, build) for name, build in _CALLS.items()},
}
