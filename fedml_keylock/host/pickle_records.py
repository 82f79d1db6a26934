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
import pickletools
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch

from ..errors import UpdateRefused

__all__ = ["Build", "Reader", "built", "plain", "record_kind"]

MOST_TUPLES = 50_000
"""In one message; a tensor takes four. Python's own stack ends at twice as many, each in the next,
when it looks for the outermost in a dict."""

Build = Callable[[tuple[Any, ...], Any], Any]
"""Builds what a call stands for from its arguments and its state; None: it does not fit."""

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


class Reader(pickle.Unpickler):
    """Finds what it is given by its whole name, and nothing else."""

    def __init__(self, file: io.BytesIO, names: Mapping[str, Any]) -> None:
        super().__init__(file)
        self._file, self._names = file, names

    def read(self) -> Any:
        """What the pickle holds, with a record for each call.

        Raises:
            UpdateRefused: it names anything else.

        """
        start = self._file.tell()
        _check_cost(self._file)
        self._file.seek(start)
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


def built(read: Any) -> Any:
    """What was read, each record built into what it stands for.

    Raises:
        UpdateRefused: a record does not fit, or something holds itself.

    Example:
        >>> built([torch.float32, {"a": (1, 2)}])
        [torch.float32, {'a': (1, 2)}]

    """
    return _Builder().of(read)


class _Builder:
    """Builds what was read; what is there once is built once."""

    def __init__(self) -> None:
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
            made = {self.of(key): self.of(entry) for key, entry in value.items()}
        elif kind in (list, tuple, set, frozenset):
            made = kind([x if type(x) in _PLAIN else self.of(x) for x in value])
        elif isinstance(value, _Record):
            args = (*value.args, value.entries) if value.entries else value.args
            made = type(value).build(self.of(args), self.of(value.state))
            if made is None:
                raise _held(f"{value.name} of other parts")
        else:  # what a call was to be of
            raise _held(f"{getattr(value, 'name', kind.__name__)} itself")
        self._built[id(value)] = (value, made)
        return made
