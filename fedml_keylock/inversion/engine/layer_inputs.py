"""Which layers of a model run on an input, and on what."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from .exact import differentiable

__all__ = ["Call", "watch"]

Call = tuple[str, nn.Module, Tensor | None]
"""A layer's name, the layer, and a copy of its first argument: None if that is no tensor."""


def watch(
    model: nn.Module, layers: Mapping[str, nn.Module], inputs: Tensor
) -> tuple[list[Call], Exception | None]:
    """Run a model once, without gradients, and note what reaches some of its layers.

    Args:
        model: what runs.
        layers: name to layer: those to watch.
        inputs: ``(1, *input_shape)``.

    Returns:
        The calls in the order in which they were made, up to the error if there was one; and that
        error, or None.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(2, 1))
        >>> calls, error = watch(model, {"1": model[1], "2": model[2]}, torch.ones(1, 1, 2, 2))
        >>> [(name, tuple(got.shape)) for name, _, got in calls], type(error).__name__
        ([('1', (1, 4)), ('2', (1, 3))], 'RuntimeError')

    """
    calls: list[Call] = []

    def note(name: str) -> Callable[[nn.Module, tuple[object, ...]], None]:
        def hook(layer: nn.Module, inputs: tuple[object, ...]) -> None:
            first = inputs[0] if inputs else None
            # a copy: a later layer may work in place
            calls.append((name, layer, first.clone() if isinstance(first, Tensor) else None))

        return hook

    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad(), differentiable():
            model(inputs)
    except Exception as error:  # whatever the model raises
        return calls, error
    finally:
        for hook in hooks:
            hook.remove()
    return calls, None
