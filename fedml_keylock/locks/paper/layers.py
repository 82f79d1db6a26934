"""Puts a layer under a lock: its class becomes a subclass, as in torch's parametrisations.

The module, its name, its parameters and `isinstance` stay the same. A subclass is used rather than
a forward hook because a compiled model ignores hooks added later, and would silently run without
the lock. It does notice a changed class.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor, nn

from ...errors import LockError
from ..private import Private
from .kinds import LOCKABLE

__all__ = ["public_parameter", "put_under_lock", "release"]


class _Locked(Private):
    """A layer that has a lock."""

    keylock: Any


class _LockedOutput(_Locked):
    """Passes its output to its lock."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)  # type: ignore[misc]  # the layer's own class has it
        return self.keylock(output)


class _LockedNorm(_LockedOutput):
    """A normalisation layer that uses gamma and beta in place of its weight and bias.

    It still computes in one fused call. Its public constants, 1 and 0, are in `_parameters`.
    """

    @property
    def weight(self) -> Tensor:
        gamma: Tensor = _from_lock(self, "scale")
        return gamma

    @weight.setter
    def weight(self, constant: Tensor) -> None:
        """Ignore the public constants, which DataParallel assigns to its replicas."""

    @property
    def bias(self) -> Tensor:
        beta: Tensor = _from_lock(self, "shift")
        return beta

    @bias.setter
    def bias(self, constant: Tensor) -> None:
        """Ignored, like weight."""


def _from_lock(holder: Any, what: str, *own: Any) -> Any:
    try:
        made = getattr(holder.keylock, what)(*own)
    except AttributeError as error:
        # torch takes an AttributeError as "not an attribute, try parameters", and would skip the
        # lock
        raise LockError(f"a locked {type(holder).__name__} has lost its lock ({error})") from error
    return made


@cache
def _locked_class(kind: Any, base: Any) -> Any:
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (base, kind), names)


def put_under_lock(holder: nn.Module) -> bool:
    """Make a layer run its `keylock`; return whether the layer applies gamma and beta itself.

    A normalisation layer with weight and bias does. For any other layer the lock gets the output.

    Example:
        >>> put_under_lock(nn.InstanceNorm2d(4)), put_under_lock(nn.BatchNorm2d(4))
        (False, True)

    """
    fused = not isinstance(holder, LOCKABLE) and None not in (
        public_parameter(holder, "weight"),
        public_parameter(holder, "bias"),
    )
    own: Any = type(holder)  # torch's stubs say that a module's class is not hashable
    kind: Any = _LockedNorm if fused else _LockedOutput
    holder.__class__ = _locked_class(own, kind)
    # torch's fused transformer layers bypass a module's forward, unless it has a hook
    holder.register_forward_hook(seen)
    return fused


def release(holder: nn.Module) -> None:
    """Undo `put_under_lock`.

    Example:
        >>> norm = nn.BatchNorm2d(4)
        >>> fused = put_under_lock(norm)
        >>> release(norm)
        >>> type(norm) is nn.BatchNorm2d
        True

    """
    own: Any
    (own,) = (kind for kind in type(holder).__bases__ if not issubclass(kind, _Locked))
    holder.__class__ = own


def seen(_module: nn.Module, _inputs: object, _output: object) -> None:
    """A forward hook that does nothing."""


def public_parameter(holder: nn.Module, name: str) -> nn.Parameter | None:
    """A layer's own parameter, not the one its lock substitutes; None if there is none.

    Example:
        >>> public_parameter(nn.InstanceNorm2d(4), "weight") is None
        True

    """
    return holder._parameters.get(name)
