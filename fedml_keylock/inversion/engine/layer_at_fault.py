"""Finds the layer of a model that an attack cannot differentiate twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from .exact import differentiable

__all__ = ["layer_at_fault"]


def layer_at_fault(model: nn.Module, run: Callable[[], object], *, vmapped: bool) -> str | None:
    """Name and type of the first innermost module that fails alone; None if none does.

    Args:
        model: the model that failed.
        run: runs the model once, without gradients.
        vmapped: whether the model failed under vmap.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.GRU(2, 2))
        >>> layer_at_fault(model, lambda: model(torch.ones(1, 3)), vmapped=True)
        '1 (GRU)'

    """
    names = {module: name for name, module in model.named_modules()}
    calls: list[tuple[nn.Module, Any]] = []

    def note(module: nn.Module, args: Any, kwargs: Any, _: object) -> None:
        # a copy: a later layer may work in place
        kept = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, (args, kwargs))
        calls.append((module, kept))

    handles = [m.register_forward_hook(note, with_kwargs=True) for m in names]
    try:
        with torch.no_grad(), differentiable():
            run()
    finally:
        for handle in handles:
            handle.remove()
    # hooks run when a module ends, so its parts come first
    for module, given in calls:
        try:
            with torch.random.fork_rng(devices=[]):
                _twice(module, given, vmapped=vmapped)
        except Exception:  # a layer may raise anything
            return f"{names[module] or 'the model'} ({type(module).__name__})"
    return None


def _twice(module: nn.Module, given: Any, *, vmapped: bool) -> None:
    """Differentiate a module twice by its parameters and inputs."""
    flat, form = tree_flatten(given)
    places = [i for i, x in enumerate(flat) if isinstance(x, Tensor) and x.is_floating_point()]
    weights = {name: p.detach() for name, p in module.named_parameters()}

    def size(weights: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        values = list(flat)
        for place, value in zip(places, inputs, strict=True):
            values[place] = value.clone()  # a layer may work in place
        args, kwargs = tree_unflatten(values, form)
        with differentiable():
            made = tree_flatten(functional_call(module, weights, args, kwargs))[0]
        sizes = [x.sin().sum() for x in made if isinstance(x, Tensor) and x.is_floating_point()]
        return torch.stack(sizes).sum()

    inputs = [flat[place].detach().requires_grad_() for place in places]
    free = [*(value.requires_grad_() for value in weights.values()), *inputs]
    if vmapped and inputs:
        dims = (None, *[0] * len(inputs))
        pairs = (torch.stack([value, value]) for value in inputs)
        made = vmap(grad(size), in_dims=dims)(weights, *pairs)
        slopes = list(made.values())
    else:
        value = size(weights, *inputs)
        slopes = list(torch.autograd.grad(value, free, create_graph=True, materialize_grads=True))
    again = [slope.square().sum() for slope in slopes if slope.requires_grad]
    if again:
        torch.stack(again).sum().backward()  # type: ignore[no-untyped-call]  # torch has none
