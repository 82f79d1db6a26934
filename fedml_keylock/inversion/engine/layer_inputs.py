"""Records which layers of a model run on an input, and their inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import torch
from torch import Tensor, nn

from ...errors import AttackError
from ..knowledge import Knowledge
from .exact import differentiable

__all__ = ["Call", "first_linear", "output_gradient", "watch"]

Call = tuple[str, nn.Module, Tensor | None]
"""A layer's name, the layer, and a copy of its first argument; None if that is no tensor."""


def watch(
    model: nn.Module, layers: Mapping[str, nn.Module], inputs: Tensor
) -> tuple[list[Call], Exception | None]:
    """Run a model once, without gradients, and record the inputs of some layers.

    Args:
        model: the model to run.
        layers: name to layer, of the layers to record.
        inputs: ``(1, *input_shape)``.

    Returns:
        The calls in order, up to an error if there was one; and that error, or None.

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
    except Exception as error:  # a model may raise anything
        return calls, error
    finally:
        for hook in hooks:
            hook.remove()
    return calls, None


def output_gradient(
    model: nn.Module, name: str, loss: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    """A layer's output while a loss is computed, and the loss's gradient by it.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> made, slope = output_gradient(model, "0", lambda: model(torch.ones(1, 2)).sum())
        >>> torch.equal(slope, (made > 0).float())
        True

    """
    outputs: list[Tensor] = []

    def keep(_layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[-1] * 1  # later layers may work in place

    hook = model.get_submodule(name).register_forward_hook(keep)
    try:
        (gradient,) = torch.autograd.grad(loss(), outputs)
    finally:
        hook.remove()
    return outputs[0].detach(), gradient


def first_linear(model: nn.Module, knowledge: Knowledge, *, bias: bool = True) -> str:
    """Name of the first layer, whose input is the model's input.

    It is the first module with own parameters that runs. Its input must be the image or the row,
    flattened or not. AttackError if the layer is not linear, lacks a needed bias, is frozen, runs
    twice, or gets another input.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> first_linear(model, Knowledge("oblivious", input_shape=(1, 2, 2), classes=3))
        '1'

    """
    own = {n: m for n, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))}
    like = next(model.parameters())
    low, high = knowledge.bounds
    pixels = torch.linspace(low, high, prod(knowledge.input_shape)).to(like)
    # an error after the first layer does not matter
    seen, error = watch(model, own, pixels.view(1, *knowledge.input_shape))
    if not seen:
        raise AttackError("the model has no layer that runs on an input") from error
    name, module, got = seen[0]
    label = f"{name or 'the model'} ({type(module).__name__})"
    if not isinstance(module, nn.Linear):
        raise AttackError(f"the model's first layer, {label}, is not linear: use another attack")
    if bias and module.bias is None:
        raise AttackError(f"the model's first layer, {label}, has no bias to divide by")
    if sum(other is module for _, other, _ in seen) > 1:
        raise AttackError(
            f"the model's first layer, {label}, runs more than once: the ratio of its gradients is "
            "a mixture of its inputs"
        )
    if got is None or got.shape != (1, pixels.numel()) or not torch.equal(got[0], pixels):
        raise AttackError(
            f"the model's first layer, {label}, does not get an input of shape "
            f"{knowledge.input_shape}, flattened, as it is"
        )
    if module.in_features != pixels.numel():
        raise AttackError(
            f"the model's first layer, {label}, takes {module.in_features} values: not an input "
            f"of shape {knowledge.input_shape}"
        )
    if not all(p.requires_grad for p in module.parameters(recurse=False)):
        raise AttackError(f"the model's first layer, {label}, is frozen: it has no gradient")
    return name
