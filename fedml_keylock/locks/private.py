"""The base of private modules: they can be copied within the process, and never pickled."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from ..errors import PrivateStateError

__all__ = ["ATTRIBUTE", "Private", "Unsent", "is_locked", "remove_hooks"]

ATTRIBUTE = "keylock"
"""The attribute of a module that holds its lock."""


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
        # the default deep copy uses __reduce_ex__, which is closed
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


class Unsent(Private, nn.Module):
    """A module whose parameters train with the model, and never enter its state.

    They are in `parameters()`; `state_dict()` leaves them all out.

    Example:
        >>> Unsent().state_dict()
        OrderedDict()

    """

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Nothing: private state is not part of a model's state."""
        return kwargs.get("destination", args[0] if args else type(super().state_dict())())

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        _metadata: Any,
        strict: bool,
        _missing: list[str],
        unexpected_keys: list[str],
        _errors: list[str],
    ) -> None:
        """Load nothing and require nothing; private names in a state are unexpected."""
        if strict:
            unexpected_keys += [name for name in state_dict if name.startswith(prefix)]

    def fresh(self) -> Self:
        """A new module of the same kind, with fresh random values."""
        raise NotImplementedError

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Like torch's; a lock without values (on meta) draws them when it gets memory."""
        was_meta = any(parameter.is_meta for parameter in self.parameters())
        super()._apply(function, recurse)  # type: ignore[no-untyped-call]  # torch has none
        if was_meta and not any(parameter.is_meta for parameter in self.parameters()):
            drawn = self.fresh()
            with torch.no_grad():
                for name, tensor in (*drawn.named_parameters(), *drawn.named_buffers()):
                    getattr(self, name).copy_(tensor)
        return self


def remove_hooks(holder: nn.Module, *functions: Callable[..., Any]) -> None:
    """Remove hooks by their function: their handles are lost when the model is copied."""
    for hooks in (
        holder._forward_pre_hooks,
        holder._forward_hooks,
        holder._state_dict_hooks,
        holder._load_state_dict_pre_hooks,
    ):
        for handle, hook in list(hooks.items()):
            if getattr(hook, "hook", hook) in functions:
                del hooks[handle]
                holder._forward_hooks_always_called.pop(handle, None)


def is_locked(model: nn.Module) -> bool:
    """Whether the model, or any part of it, carries a lock."""
    return any(isinstance(getattr(m, ATTRIBUTE, None), Private) for m in model.modules())
