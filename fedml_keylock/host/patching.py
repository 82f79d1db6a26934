"""Patches another package's classes and modules reversibly: all seams, or none."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..errors import HostError

__all__ = ["Function", "Patches", "Seam", "around", "replaced"]

Function = Callable[..., Any]
"""A function of FedML's, or its replacement."""


def around(body: Function) -> Callable[[Function], Function]:
    """Make a wrapper from a body that takes the original function, then the call's arguments.

    Example:
        >>> loud = around(lambda original, name: original(name).upper())
        >>> loud(lambda name: f"hello {name}")("you")
        'HELLO YOU'

    """

    def wrap(original: Function) -> Function:
        @functools.wraps(original)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            return body(original, *args, **kwargs)

        return replacement

    return wrap


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an object's attribute for some time.

    Example:
        >>> class Host:
        ...     data = 1
        >>> with replaced(host := Host(), "data", 2):
        ...     host.data
        2
        >>> host.data
        1

    """
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@dataclass(frozen=True)
class Seam:
    """One function of FedML's to wrap.

    Attributes:
        owner: the class or module that holds it.
        name: its name there.
        parameters: the names of its parameters, for which the wrapper was written; None for any.
        wrap: makes the replacement from the original.

    Example:
        >>> class Host:
        ...     def greet(self): return "hello"
        >>> Seam(Host, "greet", ("self",), lambda original: original).label
        'Host.greet'

    """

    owner: Any
    name: str
    parameters: tuple[str, ...] | None
    wrap: Callable[[Function], Function]

    @property
    def label(self) -> str:
        """Its name in messages: ``Class.function``."""
        return f"{getattr(self.owner, '__name__', self.owner)}.{self.name}"

    def problem(self) -> str | None:
        """Why the function does not fit, or None."""
        if self.name not in vars(self.owner):
            return f"{self.label} does not exist"
        try:
            found = tuple(inspect.signature(getattr(self.owner, self.name)).parameters)
        except (TypeError, ValueError):
            return f"{self.label} is not a function"
        if self.parameters is not None and found != self.parameters:
            return f"{self.label} takes ({', '.join(found)}), not ({', '.join(self.parameters)})"
        return None


@dataclass
class Patches:
    """A set of seams that is installed and removed as one.

    Example:
        >>> class Host:
        ...     def greet(self): return "hello"
        >>> patches = Patches((Seam(Host, "greet", ("self",), lambda f: lambda self: "hi"),))
        >>> patches.apply(); Host().greet()
        'hi'
        >>> patches.restore(); Host().greet()
        'hello'

    """

    seams: tuple[Seam, ...]
    applied: bool = False
    _raw: list[tuple[Any, str, Any]] = field(default_factory=list)

    def problems(self) -> list[str]:
        """The misfits, seam by seam.

        Example:
            >>> Patches((Seam(Patches, "gone", (), lambda f: f),)).problems()
            ['Patches.gone does not exist']

        """
        return [problem for seam in self.seams if (problem := seam.problem())]

    def apply(self) -> None:
        """Install every wrapper.

        Raises:
            HostError: a seam does not fit; nothing has changed.

        """
        if self.applied:
            return
        if problems := self.problems():
            raise HostError("this fedml is not one that fits: " + "; ".join(problems))
        try:
            for seam in self.seams:
                raw = vars(seam.owner)[seam.name]  # the entry itself: a staticmethod stays one
                replacement = seam.wrap(getattr(seam.owner, seam.name))
                setattr(seam.owner, seam.name, replacement)
                self._raw.append((seam.owner, seam.name, raw))
        except BaseException:
            self.restore()
            raise
        self.applied = True

    def restore(self) -> None:
        """Restore every original, exactly as it was."""
        while self._raw:
            owner, name, raw = self._raw.pop()
            setattr(owner, name, raw)
        self.applied = False
