"""Describes the loss that silos train with, and its targets for an attacker to search for."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import AttackError, ConfigError, first_line

__all__ = ["CROSS_ENTROPY", "Loss", "Targets", "loss_of"]

Targets = Literal["classes", "marks", "values", "own"]

_KINDS: Mapping[type[nn.Module], Targets] = {
    nn.CrossEntropyLoss: "classes",
    nn.NLLLoss: "classes",
    nn.BCELoss: "marks",
    nn.BCEWithLogitsLoss: "marks",
    nn.MultiLabelSoftMarginLoss: "marks",
    nn.MSELoss: "values",
    nn.L1Loss: "values",
    nn.SmoothL1Loss: "values",
    nn.HuberLoss: "values",
    nn.PoissonNLLLoss: "values",
}


@dataclass(frozen=True)
class Loss:
    """A training loss: a number from a model's outputs and their targets.

    Attributes:
        function: ``function(outputs, targets)``, a loss of torch.nn or a job's own.
        name: in the form that `loss_of` reads, "CrossEntropyLoss(label_smoothing=0.1)".
        targets: the kind of targets. ``classes``: the class index of each image, or of each of its
            pixels. ``marks``: a number from 0 to 1 for each output. ``values``: any number for each
            output. ``own``: unknown before the data are seen.
        assumed: whether it is a guess, because no loss was named.

    """

    function: Callable[[Tensor, Tensor], Tensor] = field(repr=False)
    name: str
    targets: Targets
    assumed: bool = False

    @classmethod
    def of(cls, function: Any, *, name: str = "") -> Loss:
        """A loss of torch.nn with its own name, or a job's own with the given name.

        Raises an AttackError for losses of torch.nn that take more than outputs and targets.

        Example:
            >>> Loss.of(nn.HuberLoss(delta=2.0)).name
            'HuberLoss(delta=2.0)'

        """
        kind = type(function)
        if kind in _KINDS:
            if function.reduction == "none":
                raise AttackError(f"{kind.__name__} without a reduction gives no number")
            return cls(function, _spelled(function), _KINDS[kind])
        if kind.__module__ == nn.modules.loss.__name__:
            known = ", ".join(one.__name__ for one in _KINDS)
            raise AttackError(f"{kind.__name__} is not attacked; of torch.nn's losses {known} are")
        return cls(function, name or _qualified(function), "own")

    def __str__(self) -> str:
        return f"{self.name}, assumed" if self.assumed else self.name

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of outputs ``(n, *shape)``.

        Targets are as `fitted` or `relaxed` makes them.
        """
        if self.targets == "classes" and targets.is_floating_point():
            return self._expected(outputs, targets)
        return self.function(outputs, targets)

    def fitted(self, labels: Tensor, output_shape: tuple[int, ...]) -> Tensor:
        """Labels ``(n, *shape)`` of data, in the form that this loss takes for one output's shape.

        Marks may be given as the index of the one marked output. Raises an AttackError for labels
        that do not fit, such as class probabilities.

        Example:
            >>> Loss.of(nn.BCELoss()).fitted(torch.tensor([1, 0]), (2,))
            tensor([[0., 1.],
                    [1., 0.]])

        """
        if self.targets == "own":
            return labels
        size = len(output_shape)
        if self.targets == "classes" and labels.shape[1:] == output_shape[1:]:
            return labels.long()
        if self.targets != "classes" and labels.shape[1:] == output_shape:
            return labels.float()
        if self.targets == "marks" and size == labels.ndim == 1 and _below(labels, output_shape[0]):
            return nn.functional.one_hot(labels.long(), output_shape[0]).float()
        if self.targets != "classes" and output_shape == (1,) and labels.ndim == 1:
            return labels.float()[:, None]
        raise self._misfit(labels, output_shape)

    def seen(self, labels: Tensor) -> Loss:
        """The same loss, with its kind of targets learned from the data's labels ``(n, ...)``."""
        if self.targets != "own":
            return self
        return replace(self, targets="values" if labels.is_floating_point() else "classes")

    def relaxed(self, unknowns: Tensor) -> Tensor:
        """Unbounded numbers, ``(b, n, *output_shape)``, as targets that can be searched for.

        Classes become their probabilities, along the first axis of an output.
        """
        if self.targets == "classes":
            return unknowns.softmax(2)
        return unknowns.sigmoid() if self.targets == "marks" else unknowns

    def told(self, targets: Tensor) -> Tensor:
        """Relaxed targets in the data's form: for probabilities ``(b, n, c, ...)`` the largest."""
        return targets.argmax(2) if self.targets == "classes" else targets

    def check_search(self, batch: int, output_shape: tuple[int, ...]) -> None:
        """Raise an AttackError if there are no targets that can be searched for."""
        function = self.function
        ignored = getattr(function, "ignore_index", -1)
        if self.targets == "own":
            raise AttackError(f"{self.name}: the targets of a job's own loss are unknown here")
        if self.targets == "classes" and 0 <= ignored < output_shape[0]:
            raise AttackError(
                f"{self.name}: an attacker cannot search for labels of which class {ignored} is "
                "ignored; give Knowledge.labels"
            )
        if self.targets != "classes" or isinstance(function, (nn.CrossEntropyLoss, nn.NLLLoss)):
            return
        if batch > 1 or len(output_shape) > 1:
            raise AttackError(
                f"{self.name}: labels are searched for under it only of one image, which has one "
                "class; attack single images, or give Knowledge.labels"
            )

    def _expected(self, outputs: Tensor, shares: Tensor) -> Tensor:
        """The expected loss if targets are drawn with these shares ``(n, classes, ...)``.

        It is the loss itself if one share is 1. It equals torch's loss with probabilities, except
        that the mean over weighted classes uses the targets' weights, as for class indices.
        """
        function = self.function
        if not isinstance(function, (nn.CrossEntropyLoss, nn.NLLLoss)):
            numbers = torch.arange(shares.shape[1], device=shares.device)
            each = [self.function(outputs, number[None]) for number in numbers]
            return (shares[0] * torch.stack(each)).sum()
        scale = outputs.new_ones(shares.shape[1]) if function.weight is None else function.weight
        scale = scale.to(outputs).view(-1, *[1] * (outputs.dim() - 2))
        smoothed, scores = shares, outputs
        if isinstance(function, nn.CrossEntropyLoss):
            scores, smooth = outputs.log_softmax(1), function.label_smoothing
            smoothed = (1 - smooth) * shares + smooth / shares.shape[1]
        total = -(scale * smoothed * scores).sum()
        return total if function.reduction == "sum" else total / (scale * shares).sum()

    def _misfit(self, labels: Tensor, output_shape: tuple[int, ...]) -> AttackError:
        return AttackError(
            f"{self.name} takes no targets {tuple(labels.shape)} for outputs of shape "
            f"{output_shape} an image"
        )


def loss_of(text: str, *, where: str) -> Loss:
    """The loss that a setting names.

    Args:
        text: a class of torch.nn with its arguments, or ``module:function``, searched for in the
            current folder first; a class there is called without arguments.
        where: the setting, for errors.

    Raises:
        ConfigError: there is no such loss, or attacks do not support it.

    Example:
        >>> loss_of("CrossEntropyLoss(weight=[1, 2.5], label_smoothing=0.1)", where="loss").name
        'CrossEntropyLoss(weight=[1.0, 2.5], label_smoothing=0.1)'
        >>> loss_of("main.my_loss()", where="loss")
        Traceback (most recent call last):
        fedml_keylock.errors.ConfigError: loss: 'main.my_loss()' is neither a class of torch.nn ...

    """
    module, colon, name = text.strip().partition(":")
    try:
        if colon and all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
            return Loss.of(_imported(module, name), name=text.strip())
        return Loss.of(_built(text))
    except ConfigError as error:
        raise ConfigError(f"{where}: {text!r} {error}") from None
    except Exception as error:  # the user's own module may raise anything
        raise ConfigError(f"{where}: {text!r}: {first_line(error)}") from None


def _built(text: str) -> nn.Module:
    """A loss of torch.nn from text that looks like a call of its class, or its name."""
    odd = ConfigError(
        "is neither a class of torch.nn such as CrossEntropyLoss(label_smoothing=0.1), nor "
        "module:function"
    )
    try:
        node = ast.parse(text.strip(), mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        fields = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
    except (SyntaxError, ValueError):
        raise odd from None
    kind = getattr(nn.modules.loss, call.func.id, None) if isinstance(call.func, ast.Name) else None
    if call.args or not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise odd
    tensors = {n: torch.tensor(v).float() for n, v in fields.items() if isinstance(v, list)}
    made: nn.Module = kind(**{**fields, **tensors})
    return made


def _imported(module: str, name: str) -> Any:
    sys.path.insert(0, str(Path.cwd()))
    made = resolve_name(f"{module}:{name}")
    made = made() if isinstance(made, type) else made
    if not callable(made):
        raise ConfigError("is no function")
    return made


def _spelled(module: Any) -> str:
    """A loss of torch.nn as `_built` reads it, with its non-default arguments."""
    said = []
    for name, parameter in signature(type(module)).parameters.items():
        value = getattr(module, name, None)  # size_average and reduce are no attributes
        value = value.tolist() if isinstance(value, Tensor) else value
        if value is not None and value != parameter.default:
            said.append(f"{name}={value!r}")
    return f"{type(module).__name__}({', '.join(said)})"


def _below(labels: Tensor, count: int) -> bool:
    """Whether labels ``(n,)`` are indices below the number of outputs."""
    whole = not labels.is_floating_point()
    return whole and count > 1 and 0 <= int(labels.min()) <= int(labels.max()) < count


def _qualified(function: Any) -> str:
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}:{kind.__qualname__}"


CROSS_ENTROPY = Loss.of(nn.CrossEntropyLoss())
"""The loss of FedML's own trainers, and of most others."""
