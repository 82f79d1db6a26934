"""Messages of other ranks, read without running anything that they name.

A pickle is a program: it imports what it names, calls it, and sets attributes of what it gets. Here
it gets nothing of that. Each call is kept as a record, and all that a pickle can do to a record is
to give it a state and entries. Only when all has been read, the records of models and numbers are
made into these, one by one, each after a look at what it says.
"""

from __future__ import annotations

import copyreg
import io
import math
import pickle
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import UpdateRefused, first_line

__all__ = ["load"]


def load(file: io.BytesIO, *, message: type, who: str) -> Any:
    """What `pickle.load` gives, of messages that hold states, arrays, numbers and containers.

    Args:
        file: the pickle.
        message: the host's class of messages.
        who: whose it is, as the error begins.

    Raises:
        UpdateRefused: it names or holds anything else, or cannot be read.

    Example:
        >>> from types import SimpleNamespace
        >>> state = io.BytesIO(pickle.dumps({"w": torch.ones(2)}))
        >>> load(state, message=SimpleNamespace, who="rank 2")
        {'w': tensor([1., 1.])}
        >>> load(io.BytesIO(pickle.dumps(eval)), message=SimpleNamespace, who="rank 2")
        Traceback (most recent call last):
        fedml_keylock.errors.UpdateRefused: rank 2: a message held builtins.eval, which no model or\
 number needs; nothing of it was run

    """
    envelope = _kind(f"{message.__module__}.{message.__qualname__}", _message_of(message))
    try:
        read = _Unpickler(file, {**_NAMES, envelope.name: envelope}).read()
        return _Making().of(read)
    except UpdateRefused as error:
        raise UpdateRefused(f"{who}: {error}") from None
    except Exception as error:  # of a damaged pickle Python raises whatever comes first
        raise UpdateRefused(
            f"{who}: a message is no pickle of a model or numbers ({type(error).__name__}: "
            f"{_plain(first_line(error))}); nothing of it was run"
        ) from None


def _held(thing: str) -> UpdateRefused:
    return UpdateRefused(
        f"a message held {_plain(thing)}, which no model or number needs; nothing of it was run"
    )


def _plain(text: str) -> str:
    """A text of somebody else's, for a line of ours."""
    return re.sub(r"[^ -~]", "?", text)[:120]


MOST_TUPLES = 50_000
"""In one message; a tensor takes four. Python's own stack ends at twice as many, each in the next,
when it looks for the outermost in a dict."""


def _check_cost(file: io.BytesIO) -> None:
    """Refuse a pickle that a few bytes make into a memory or a stack that Python does not have."""
    tuples = 0
    for number, (code, arg, _) in enumerate(pickletools.genops(file)):
        tuples += code.name.startswith("TUPLE")
        # a place in the list of what has been read, which is made as long as that
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and not (arg or 0) <= number:
            raise _held("more places than things")
        if tuples > MOST_TUPLES:
            raise _held(f"more than {MOST_TUPLES} tuples")


class _Unpickler(pickle.Unpickler):
    """Finds what it is given by its whole name, and nothing else."""

    def __init__(self, file: io.BytesIO, names: Mapping[str, Any]) -> None:
        super().__init__(file)
        self._file, self._names = file, names

    def read(self) -> Any:
        start = self._file.tell()
        _check_cost(self._file)
        self._file.seek(start)
        # what an extension code stood for once is kept here, and taken without a look at its name
        copyreg.clear_extension_cache()
        try:
            return self.load()
        finally:
            copyreg.clear_extension_cache()

    def find_class(self, module: str, name: str) -> Any:
        found = self._names.get(f"{module}.{name}") if "." not in name else None
        if found is None:
            raise _held(f"{module}.{name}")
        return found

    def persistent_load(self, _pid: Any) -> Any:
        raise _held("a persistent id")


_Make = Callable[[tuple[Any, ...], Any], Any]
"""Makes what a call stands for from its arguments and its state; None: it does not fit."""


class _Record:
    """A call that a pickle asks for, and all that is said to what it would give."""

    __slots__ = ("args", "entries", "state")
    name: ClassVar[str]
    make: ClassVar[_Make]
    args: tuple[Any, ...]
    entries: dict[Any, Any]
    state: Any

    def __new__(cls, *args: Any) -> _Record:
        record = super().__new__(cls)
        record.args, record.entries, record.state = args, {}, None
        return record

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def __setstate__(self, state: Any) -> None:
        self.state = state  # without this method, a state would set attributes


def _kind(name: str, make: _Make) -> type[_Record]:
    """The records of calls of one name: a class, as a pickle calls some and makes others anew."""
    spaces = {"__slots__": (), "name": name, "make": staticmethod(make)}
    return type("_Record", (_Record,), spaces)


class _Making:
    """Makes what was read into what it stands for; what is there once is made once."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Any, Any]] = {}

    def of(self, value: Any) -> Any:
        kind = type(value)
        if kind in _PLAIN:
            return value
        if id(value) in self._made:
            _, made = self._made[id(value)]
            if made is self:
                raise _held("something that holds itself")
            return made
        # with the value, whose identity would be another's if it were gone
        self._made[id(value)] = (value, self)
        if kind is dict:
            made = {self.of(key): self.of(entry) for key, entry in value.items()}
        elif kind in (list, tuple, set, frozenset):
            made = kind([x if type(x) in _PLAIN else self.of(x) for x in value])
        elif isinstance(value, _Record):
            args = (*value.args, value.entries) if value.entries else value.args
            made = type(value).make(self.of(args), self.of(value.state))
            if made is None:
                raise _held(f"{value.name} of other parts")
        else:  # what a call was to be of
            raise _held(f"{getattr(value, 'name', kind.__name__)} itself")
        self._made[id(value)] = (value, made)
        return made


_PLAIN = {type(None), bool, int, float, complex, str, bytes, bytearray, torch.dtype}


def _message_of(message: type) -> _Make:
    def make(args: tuple[Any, ...], state: Any) -> Any:
        usual = vars(message())
        # an attribute of another name could stand before a method
        if args or type(state) is not dict or state.keys() != usual.keys():
            return None
        if any(type(v) is dict and type(state[k]) is not dict for k, v in usual.items()):
            return None
        made: Any = object.__new__(message)
        vars(made).update(state)
        return made

    return make


def _ordered(args: tuple[Any, ...], state: Any) -> Any:
    match args, state:
        case () | (dict(),), None:
            return OrderedDict(*args)
        case () | (dict(),), {"_metadata": OrderedDict() as versions, **others} if not others:
            made = OrderedDict(*args)
            made._metadata = versions  # type: ignore[attr-defined]  # torch keeps it there
            return made
    return None


def _tensor(args: tuple[Any, ...], state: Any) -> Any:
    match args, state:
        case (
            (torch.TypedStorage() as whole, int(at), tuple(size), tuple(stride), bool(), hooks),
            None,
        ) if hooks == {}:
            steps = [*size, *stride, at]
            if len(size) != len(stride) or any(type(n) is not int or n < 0 for n in steps):
                return None
            last = at + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
            # torch would lengthen the storage by memory that this process has used for other things
            if math.prod(size) and last >= whole._size():  # type: ignore[no-untyped-call]
                return None
            return torch._utils._rebuild_tensor_v2(*args)  # type: ignore[no-untyped-call]
    return None


def _parameter(args: tuple[Any, ...], state: Any) -> Any:
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


class _Head(_Unpickler):
    """The head of a storage that torch.save has written, in which its kind is a persistent id."""

    def persistent_load(self, pid: Any) -> Any:
        return pid


def _storage(args: tuple[Any, ...], state: Any) -> Any:
    """What torch.save wrote in its older format: torch.load would run what it names."""
    if state is not None or [type(arg) for arg in args] != [bytes]:
        return None
    (written,), file = args, io.BytesIO(*args)
    match [_Head(file, _IN_STORAGE).read() for _ in range(5)]:
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
            own = torch.UntypedStorage.from_buffer(body[8:], dtype=torch.uint8)
            whole = own.to(device=torch.device(place))
            return torch.TypedStorage(  # type: ignore[no-untyped-call]
                wrap_storage=whole, dtype=dtype, _internal=True
            )
    return None


def _size(args: tuple[Any, ...], state: Any) -> Any:
    match args, state:
        case (tuple(size),), None if all(type(n) is int for n in size):
            return torch.Size(size)
    return None


def _device(args: tuple[Any, ...], state: Any) -> Any:
    match args, state:
        case (((str(),) | (str(), int())), None):
            return torch.device(*args)
    return None


_NUMBERS = re.compile(r"b1|[iu][1248]|f(2|4|8|12|16)|c(8|16|24|32)|[SU]\d{1,6}")
"""What dtypes of numpy's can be: numbers and texts, and neither objects nor fields."""


def _dtype(args: tuple[Any, ...], state: Any) -> Any:
    match args, state:
        case (str(code), _, _), (3, "<" | ">" | "|" as order, None, None, None, _, _, _):
            return np.dtype(code).newbyteorder(order) if _NUMBERS.fullmatch(code) else None
    return None


def _reconstruct(args: tuple[Any, ...], state: Any) -> Any:
    match args, state:
        case ("numpy.ndarray", (0,), b"b"), (1, shape, dtype, fortran, bytes(raw)):
            array = _array(raw, dtype, shape, "F" if fortran else "C")
            # numpy gives these in the machine's own order, whatever theirs is
            return None if array is None else array.astype(dtype.newbyteorder("="), copy=False)
    return None


def _frombuffer(args: tuple[Any, ...], state: Any) -> Any:
    match args, state:
        case (bytes() | bytearray() as raw, dtype, shape, "C" | "F" as order), None:
            return _array(raw, dtype, shape, order)
    return None


def _scalar(args: tuple[Any, ...], state: Any) -> Any:
    match args, state:
        case (dtype, bytes(raw)), None:
            array = _array(raw, dtype, (), "C")
            return None if array is None else array[()]
    return None


def _array(raw: bytes | bytearray, dtype: Any, shape: Any, order: Any) -> Any:
    fits = isinstance(dtype, np.dtype) and type(shape) is tuple
    if not fits or any(type(n) is not int or n < 0 for n in shape):
        return None
    if math.prod(shape) * dtype.itemsize != len(raw):
        return None
    array: np.ndarray[Any, Any] = np.ndarray(shape, dtype, raw, order=order)
    return array if array.flags.writeable else array.copy("K")


def _complex(args: tuple[Any, ...], state: Any) -> Any:
    match args, state:
        case (float(), float()), None:
            return complex(*args)
    return None


def _bytearray(args: tuple[Any, ...], state: Any) -> Any:
    match args, state:
        case ((() | (bytes(),)), None):
            return bytearray(*args)
    return None


_CALLS: dict[str, _Make] = {
    "builtins.bytearray": _bytearray,
    "builtins.complex": _complex,
    "collections.OrderedDict": _ordered,
    "numpy.dtype": _dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.Size": _size,
    "torch.device": _device,
    "torch.storage._load_from_bytes": _storage,
}
for _core in ("numpy.core", "numpy._core"):  # of numpy 1 and of numpy 2
    _CALLS[f"{_core}.multiarray._reconstruct"] = _reconstruct
    _CALLS[f"{_core}.multiarray.scalar"] = _scalar
    _CALLS[f"{_core}.numeric._frombuffer"] = _frombuffer

_NAMES: Mapping[str, Any] = {
    "numpy.ndarray": "numpy.ndarray",
    **{str(v): v for v in vars(torch).values() if isinstance(v, torch.dtype)},
    **{name: _kind(name, make) for name, make in _CALLS.items()},
}
