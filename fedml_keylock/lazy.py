"""Loads a package's names on first use, so that importing the package is cheap."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["lazy"]


def lazy(
    package: str, where: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make a package's `__getattr__` and `__dir__`.

    Args:
        package: its `__name__`.
        where: the module that holds each exported name, relative to the package: ".keylock".

    Example:
        >>> getattribute, names = lazy("fedml_keylock", {"ClientUpdate": ".types"})
        >>> getattribute("ClientUpdate").__name__, names()
        ('ClientUpdate', ['ClientUpdate'])

    """

    def getattribute(name: str) -> Any:
        if name in where:
            return getattr(import_module(where[name], package), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return getattribute, lambda: sorted(where)
