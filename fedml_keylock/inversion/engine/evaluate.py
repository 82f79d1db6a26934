"""Runs a model and its gradient in an attack, and candidates one by one if vmap cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from ..knowledge import Statistics
from ..outputs import logits_of
from .exact import differentiable

__all__ = ["one_by_one", "run", "slope"]

LossOfWeights = Callable[[dict[str, Tensor], Tensor, Tensor], tuple[Tensor, Statistics]]
"""Takes weights, images and labels; returns a loss, and the normalisation statistics."""


def run(model: nn.Module, state: dict[str, Tensor], images: Tensor) -> Tensor:
    """Logits of images ``(n, *input_shape)`` under a state, twice differentiable."""
    with differentiable():
        return logits_of(functional_call(model, state, (images,)))


def slope(loss: LossOfWeights) -> Callable[..., tuple[dict[str, Tensor], Statistics]]:
    """The gradient of a loss by its weights, as ``torch.func.grad`` but by autograd.

    Custom functions, checkpoints and hooks work with autograd, and not with ``torch.func``. The
    result can be differentiated again unless gradients are off.

    Example:
        >>> square = lambda weights, x, y: ((weights["w"] * x).square(), {})
        >>> made, _ = slope(square)({"w": torch.tensor(3.0)}, torch.tensor(1.0), torch.tensor(0))
        >>> made["w"].detach()
        tensor(6.)

    """

    def gradient(
        weights: Mapping[str, Tensor], images: Tensor, labels: Tensor
    ) -> tuple[dict[str, Tensor], Statistics]:
        again = torch.is_grad_enabled()
        # weights of a later local step already depend on the images
        free = {
            n: w if w.requires_grad else w.detach().requires_grad_() for n, w in weights.items()
        }
        with torch.enable_grad():
            value, found = loss(free, images, labels)
            made = torch.autograd.grad(
                value,
                list(free.values()),
                create_graph=again,
                allow_unused=True,
                materialize_grads=True,
            )
        return dict(zip(free, made, strict=True)), found

    return gradient


def one_by_one(function: Callable[..., Any], in_dims: Sequence[int | None]) -> Callable[..., Any]:
    """``vmap`` as a loop over tensors, and dicts and tuples of them.

    Each run draws the same random numbers.

    Example:
        >>> one_by_one(lambda x, y: {"sum": x + y}, in_dims=(None, 0))(torch.ones(1), torch.eye(2))
        {'sum': tensor([[2., 1.],
                [1., 2.]])}

    """

    def loop(*inputs: Any) -> Any:
        given = list(zip(inputs, in_dims, strict=True))
        count = next(len(value) for value, dim in given if dim == 0 and isinstance(value, Tensor))
        made = []
        for index in range(count):
            row = [value if dim is None else _row(value, index) for value, dim in given]
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(0)  # a GPU's generator is not restored
                made.append(function(*row))
        return tree_map(lambda *parts: torch.stack(parts), *made)

    return loop


def _row(value: Any, index: int) -> Any:
    return tree_map(lambda tensor: tensor[index], value)
