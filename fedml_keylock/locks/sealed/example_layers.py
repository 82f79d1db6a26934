"""Checks which layers and losses allow per-example gradients, and cleans up after opacus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from inspect import signature
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from ...errors import ConfigError, LockError

__all__ = ["WHO", "OneByOne", "check_layers", "clean", "inputs_forgotten", "training"]

WHO = "keylock.noise: unit: example"
_OF_A_BATCH = ("activations", "max_batch_len")
_LEFT = (*_OF_A_BATCH, "ft_compute_sample_grad", "autograd_grad_sample_hooks")
"""Attributes that opacus leaves on layers; they include the last inputs."""
_LEFT_AT_PARAMETERS = ("grad_sample", "_current_grad_sample", "_forward_counter")


def check_layers(model: nn.Module) -> None:
    """Check that per-example gradients can be computed for a model.

    Raises:
        ConfigError: opacus is missing, or does not support a layer of the model.

    """
    for name, module in model.named_modules():
        for problem in _problems(module):
            raise ConfigError(
                f"{WHO}: layer {name or 'model'} ({type(module).__name__}): {problem}"
            )
    if not dict(training(model)):
        raise ConfigError(f"{WHO}: {type(model).__name__} has no parameter that trains")
    for name, parameter in training(model):
        if parameter.is_complex():
            raise ConfigError(f"{WHO}: {name} is complex, which opacus cannot do; use real numbers")


def _problems(module: nn.Module) -> Iterator[str]:
    """The problems that opacus reports for a layer, and its replacement."""
    validators = _opacus().validators.ModuleValidator
    trains = any(p.requires_grad for p in module.parameters(recurse=False))
    known = next((kind for kind in type(module).__mro__ if kind in validators.VALIDATORS), None)
    # frozen layers matter only if they are in training mode when called: see OneByOne
    mixes = isinstance(module, _BatchNorm) and not any(True for _ in module.parameters())
    if known and (trains or mixes):
        for error in validators.VALIDATORS[known](module):
            said = str(error).partition(". ")[0]
            other = validators.FIXERS.get(known)
            instead = f"; use {type(other(module)).__name__} instead" if other else ""
            yield f"{said}{instead}, as opacus.validators.ModuleValidator.fix(model) does"
    elif trains and any(True for _ in module.buffers()):
        yield "it has buffers, which opacus does not allow beside parameters that train"
    elif trains and any(name in _LEFT and hasattr(module, name) for name in _LEFT):
        yield f"opacus has attributes of its own named {', '.join(_LEFT)}: name them otherwise"


class OneByOne(TorchFunctionMode):
    """Rejects operations that make an example's gradient depend on others of its batch.

    It knows batch norms, losses whose mean depends on class weights or on ignored targets, and
    losses that are sums. opacus takes the loss for a mean: under a sum it would scale each
    example's gradient by the size of the batch.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        _types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Check a call, and make it.

        Raises:
            LockError: the operation is one of these.

        """
        named = kwargs or {}
        problem = ""
        if func in (F.cross_entropy, F.nll_loss, F.batch_norm):
            given = signature(func).bind(*args, **named)
            given.apply_defaults()
            problem = _of_many(func, given.arguments)
        summed = func is Tensor.backward and type(args[0].grad_fn).__name__ == "SumBackward0"
        if summed or named.get("reduction") == "sum":
            problem = "the loss of a batch is a sum, longer with each example; take the mean"
        if problem:
            raise LockError(f"{WHO}: {problem}")
        return func(*args, **named)


def _of_many(func: Callable[..., Any], given: Mapping[str, Any]) -> str:
    """Why a call makes one example's result depend on others; empty if it does not."""
    if func is F.batch_norm:
        mixes = given["training"]
        return "batch_norm depends on all of a batch; use GroupNorm instead" if mixes else ""
    if given["reduction"] != "mean":
        return ""
    name, other = func.__name__, 'take the mean of reduction="none" instead'
    if given["weight"] is not None:
        return f"the mean of {name} with weights of classes is over a batch's weights; {other}"
    target, ignored = given["target"], given["ignore_index"]
    if not target.is_floating_point() and bool((target == ignored).any()):
        return f"the mean of {name} is over the targets of a batch that are not {ignored}; {other}"
    return ""


def _opacus() -> Any:
    try:
        import opacus
        import opacus.validators
    except ImportError:
        raise ConfigError(f"{WHO} needs opacus: pip install 'fedml-keylock[noise]'") from None
    return opacus


def training(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """A model's trainable parameters, by name.

    Example:
        >>> [name for name, _ in training(nn.Linear(1, 1))]
        ['weight', 'bias']

    """
    # a shared parameter under each of its names, since each is sent
    named = model.named_parameters(remove_duplicate=False)
    return ((name, parameter) for name, parameter in named if parameter.requires_grad)


def inputs_forgotten(model: nn.Module) -> None:
    """Drop the layer inputs that opacus holds."""
    for module in model.modules():
        for name in _OF_A_BATCH:
            vars(module).pop(name, None)


def clean(model: nn.Module, before: Mapping[nn.Module, set[str]]) -> None:
    """Remove what opacus left on a model.

    Args:
        model: after its hooks were removed.
        before: for each layer, the names of its attributes before opacus.

    """
    for module in model.modules():
        had = before.get(module, set())
        for name in {*_LEFT, "_is_full_backward_hook"} - had:
            vars(module).pop(name, None)
        if not module._backward_hooks and "_is_full_backward_hook" in vars(module):
            module._is_full_backward_hook = None
    for parameter in model.parameters():
        for name in _LEFT_AT_PARAMETERS:
            vars(parameter).pop(name, None)
