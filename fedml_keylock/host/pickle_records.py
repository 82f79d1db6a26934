"""Reads a pickle without running anything that it names.

A pickle is a program: it imports names, calls them, and sets attributes on the results. Here each
call only makes a record, and a pickle can only give a record a state and entries. After everything
is read, each record of an allowed call is checked and becomes the object that it stands for.
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
"""Memory that a message may use: this many times its bytes, and this many bytes more."""

_PLAIN = {type(None), bool, int, float, complex, str, bytes, bytearray, torch.dtype}


def plain(text: str) -> str:
    r"""Another party's text, made safe for a line of ours.

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
    """The memory that building a message may still use.

    Args:
        size: of the message, in bytes.

    """

    def __init__(self, size: int) -> None:
        self._left = TIMES * size + ROOM

    def spend(self, size: int) -> None:
        """Reserve bytes for something before it is built.

        Raises:
            UpdateRefused: not enough is left.

        """
        self._left -= size
        if self._left < 0:
            raise _held(f"what takes over {TIMES} times its bytes and {ROOM >> 20} MB of memory")


Build = Callable[[tuple[Any, ...], Any, Budget], Any]
"""Builds an object from a call's arguments and state; None if they do not fit. It reserves memory
from the budget before it uses memory in proportion to anything."""


class _Record:
    """A call in a pickle, and the state and entries that the pickle gives its result."""

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
        self.state = state  # without this method, pickle would set attributes


def record_kind(name: str, build: Build) -> type[_Record]:
    """A record class for calls of one name: pickles call some classes and instantiate others."""
    return type(
        "_Record", (_Record,), {"__slots__": (), "name": name, "build": staticmethod(build)}
    )


class Reader(pickle._Unpickler):
    """Resolves only the names that it is given, each by its full name.

    It is Python's pure unpickler: each of its steps is checked before it runs.
    """

    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {}

    def __init__(self, file: io.BytesIO, names: Mapping[str, Any], budget: Budget) -> None:
        super().__init__(file)
        self._names, self.budget = names, budget

    def read(self) -> Any:
        """The pickle's content, with a record for each call.

        Raises:
            UpdateRefused: the pickle has any other name, or uses too much memory.

        """
        # the cache would resolve an extension code without a check of its name
        copyreg.clear_extension_cache()
        try:
            return self.load()
        finally:
            copyreg.clear_extension_cache()

    def find_class(self, module: str, name: str) -> Any:
        """The record class, or the value, for a full name."""
        found = self._names.get(f"{module}.{name}") if "." not in name else None
        if found is None:
            raise _held(f"{module}.{name}")
        return found

    def persistent_load(self, _pid: Any) -> Any:
        """Refused: no message needs a persistent id."""
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
"""Largest memory of each step, in bytes: the result, its places, and what is built from it."""
_OTHER, _ENTRY = 100, 200
"""The same for any other step, and for an entry of a dict or set beside its key and value."""

_KEYS = {str, int, float, bool}
"""Allowed types of dict keys and set members. Hashing nested tuples can overflow Python's stack."""
_KEYS_ON: Mapping[bytes, Callable[[list[Any]], list[Any]]] = {
    pickle.SETITEM: lambda stack: stack[-2:-1],
    pickle.SETITEMS: lambda stack: stack[::2],
    pickle.DICT: lambda stack: stack[::2],
    pickle.ADDITEMS: lambda stack: stack,
    pickle.FROZENSET: lambda stack: stack,
}
"""Where these steps have their arguments on the stack."""


def _step(code: bytes, load: Callable[[Any], None]) -> Callable[[Reader], None]:
    """A step of the unpickler that first checks the memory it needs."""
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
    reader.append(bytearray(reader.read(size)))  # Python's own would allocate the claimed size


Reader.dispatch = {
    code: _step(bytes([code]), load)
    for code, load in (pickle._Unpickler.dispatch | {pickle.BYTEARRAY8[0]: _bytearray}).items()
}


def built(read: Any, budget: Budget) -> Any:
    """Build every record into the object that it stands for.

    Raises:
        UpdateRefused: a record does not fit, an object contains itself, or memory runs out.

    Example:
        >>> built([torch.float32, {"a": (1, 2)}], Budget(100))
        [torch.float32, {'a': (1, 2)}]

    """
    return _Builder(budget).of(read)


class _Builder:
    """Builds what was read; shared objects are built once."""

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
        # keeps the value alive, so that its id is not reused
        self._built[id(value)] = (value, self)
        if kind is dict:
            made = {key: self.of(entry) for key, entry in value.items()}
        elif kind in (list, tuple, set, frozenset):
            made = kind([x if type(x) in _PLAIN else self.of(x) for x in value])
        elif isinstance(value, _Record):
            args = (*value.args, value.entries) if value.entries else value.args
            made = type(value).build(self.of(args), self.of(value.state), self._budget)
            if made is None:
                raise _held(f"{value.name} with other arguments")
        else:  # the name of a call, without the call
            raise _held(f"{getattr(value, 'name', kind.__name__)} itself")
        self._built[id(value)] = (value, made)
        return made
