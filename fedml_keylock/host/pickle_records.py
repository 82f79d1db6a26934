"""A pickle, read without running anything that it names.

A pickle is a program: it imports what it names, calls it, and sets attributes of what it gets. Here
it gets nothing of that. Each call is kept as a record, and all that a pickle can do to a record is
to give it a state and entries. Only when all is read, each record of an allowed call becomes what
it stands for, after a look at what it says.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch

from ..errors import UpdateRefused

__all__ = ["Budget", "Build", "Reader", "built", "plain", "record_kind"]

TIMES, ROOM = 20, 16 * 2**20
"""What a message may take: so many times its bytes, and so many bytes more."""

_PLAIN = {type(None), bool, int, float, complex, str, bytes, bytearray, torch.dtype}


def plain(text: str) -> str:
    r"""A text of somebody else's, for a line of ours.

    Example:
        >>> plain("a\nb")
        'a?b'

    """
    return re.sub(r"[^ -~]", "?", text)[:120]


def _held(thing: str) -> UpdateRefused:
    return UpdateRefused(
        f"a message held {plain(thing)}, which no model or number needs; nothing of it was run"
    )


class Budget:
    """Memory that what a message makes may still take.

    Args:
        size: bytes of the message.

    """

    def __init__(self, size: int) -> None:
        self._left = TIMES * size + ROOM

    def spend(self, size: int) -> None:
        """Take bytes for something, before it is made.

        Raises:
            UpdateRefused: there are not as many left.

        """
        self._left -= size
        if self._left < 0:
            raise _held(f"what takes over {TIMES} times its bytes and {ROOM >> 20} MB of memory")


Build = Callable[[tuple[Any, ...], Any, Budget], Any]
"""Builds what a call stands for from its arguments and its state; None: it does not fit. What takes
memory in proportion to something is taken from the budget first."""


class _Record:
    """A call that a pickle asks for, and all that is said to what it would give."""

    __slots__ = ("args", "entries", "state")
    name: ClassVar[str]
    build: ClassVar[Build]
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


def record_kind(name: str, build: Build) -> type[_Record]:
    """The records of calls of one name: a class, as a pickle calls some and makes others anew."""
    return type(
        "_Record", (_Record,), {"__slots__": (), "name": name, "build": staticmethod(build)}
    )


class Reader(pickle._Unpickler):
    """Finds what it is given by its whole name, and nothing else.

    Python's own form of the unpickler: each of its steps is looked at before it is made.
    """

    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {}

    def __init__(self, file: io.BytesIO, names: Mapping[str, Any], budget: Budget) -> None:
        super().__init__(file)
        self._names, self.budget = names, budget

    def read(self) -> Any:
        """What the pickle holds, with a record for each call.

        Raises:
            UpdateRefused: it names anything else, or takes too much memory.

        """
        # what an extension code stood for once is kept here, and used without a look at its name
        copyreg.clear_extension_cache()
        try:
            return self.load()
        finally:
            copyreg.clear_extension_cache()

    def find_class(self, module: str, name: str) -> Any:
        """The record kind, or the value, of a whole name."""
        found = self._names.get(f"{module}.{name}") if "." not in name else None
        if found is None:
            raise _held(f"{module}.{name}")
        return found

    def persistent_load(self, _pid: Any) -> Any:
        """Nothing."""
        raise _held("a persistent id")


_CALL = 1000
_COSTS: Mapping[bytes, int] = {
    code: size
    for size, codes in {
        _CALL: (pickle.REDUCE, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.OBJ, pickle.INST),
        350: (
            *(pickle.EMPTY_LIST, pickle.LIST, pickle.EMPTY_DICT, pickle.DICT, pickle.EMPTY_SET),
            *(pickle.FROZENSET, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
        ),
        130: (pickle.MARK, pickle.MEMOIZE, pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT),
        30: (pickle.GET, pickle.BINGET, pickle.LONG_BINGET, pickle.BININT1, pickle.NONE),
    }.items()
    for code in codes
}
"""Bytes that steps take at most: what each makes, its places, and what is built of it."""
_OTHER, _ENTRY = 100, 200
"""The same of any other step, and of an entry of a dict or set, beside its key and value."""

_KEYS = {str, int, float, bool}
"""Of dicts, and members of sets. A hash of tuples in tuples takes Python's stack, or for ever."""
_KEYS_ON: Mapping[bytes, Callable[[list[Any]], list[Any]]] = {
    pickle.SETITEM: lambda stack: stack[-2:-1],
    pickle.SETITEMS: lambda stack: stack[::2],
    pickle.DICT: lambda stack: stack[::2],
    pickle.ADDITEMS: lambda stack: stack,
    pickle.FROZENSET: lambda stack: stack,
}
"""Where the stack has them."""


def _step(code: bytes, load: Callable[[Any], None]) -> Callable[[Reader], None]:
    """A step of the unpickler's, behind a look at what it takes."""
    cost, keys_on = _COSTS.get(code, _OTHER), _KEYS_ON.get(code)

    def step(reader: Reader) -> None:
        reader.budget.spend(cost)
        if keys_on:
            keys = keys_on(reader.stack)
            if not all(type(key) in _KEYS for key in keys):
                raise _held("a key that is neither text nor a number")
            reader.budget.spend(_ENTRY * len(keys))
        if cost == _CALL and reader.stack and type(reader.stack[-1]) is tuple:
            reader.budget.spend(24 * len(reader.stack[-1]))  # arguments are copied
        load(reader)

    return step


def _bytearray(reader: Any) -> None:
    (size,) = struct.unpack("<Q", reader.read(8))
    reader.append(bytearray(reader.read(size)))  # Python makes as many as it is told first


Reader.dispatch = {
    code: _step(bytes([code]), load)
    for code, load in (pickle._Unpickler.dispatch | {pickle.BYTEARRAY8[0]: _bytearray}).items()
}


def built(read: Any, budget: Budget) -> Any:
    """What was read, each record built into what it stands for.

    Raises:
        UpdateRefused: a record does not fit, something holds itself, or it takes too much memory.

    Example:
        >>> built([torch.float32, {"a": (1, 2)}], Budget(100))
        [torch.float32, {'a': (1, 2)}]

    """
    return _Builder(budget).of(read)


class _Builder:
    """Builds what was read; what is there once is built once."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._built: dict[int, tuple[Any, Any]] = {}

    def of(self, value: Any) -> Any:
        kind = type(value)
        if kind in _PLAIN:
            return value
        if id(value) in self._built:
            _, made = self._built[id(value)]
            if made is self:
                raise _held("something that holds itself")
            return made
        # with the value, whose identity would be another's if it were gone
        self._built[id(value)] = (value, self)
        if kind is dict:
            made = {key: self.of(entry) for key, entry in value.items()}
        elif kind in (list, tuple, set, frozenset):
            made = kind([x if type(x) in _PLAIN else self.of(x) for x in value])
        elif isinstance(value, _Record):
            args = (*value.args, value.entries) if value.entries else value.args
            made = type(value).build(self.of(args), self.of(value.state), self._budget)
            if made is None:
                raise _held(f"{value.name} of other parts")
        else:  # what a call was to be of
            raise _held(f"{getattr(value, 'name', kind.__name__)} itself")
        self._built[id(value)] = (value, made)
        return made
