"""Hooks on modules, by their functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["remove_hooks"]


def remove_hooks(holder: nn.Module, *functions: Callable[..., Any]) -> None:
    """Remove hooks by their function: their handles do not survive a copy of the model."""
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
