"""What private modules have in common: they can be copied within the process, and never pickled."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, NoReturn, Self

from ..errors import PrivateStateError

__all__ = ["Private"]


class Private:
    """A module that holds private state, or computes with it.

    Example:
        >>> import pickle
        >>> try:
        ...     pickle.dumps(Private())
        ... except PrivateStateError as error:
        ...     print(str(error)[:33])
        a locked model cannot be pickled:

    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # the ordinary way goes through __reduce_ex__, which is closed
        copy = self.__new__(type(self))
        memo[id(self)] = copy
        copy.__dict__.update({name: deepcopy(value, memo) for name, value in vars(self).items()})
        return copy

    def __copy__(self) -> Self:
        copy = self.__new__(type(self))
        copy.__dict__.update(vars(self))
        return copy

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise PrivateStateError(
            "a locked model cannot be pickled: its lock is private to the silo. Save "
            "model.state_dict() for the public part, and let the vault keep the private one"
        )
