"""Clips per-example gradients during a silo's ordinary local training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from ...errors import LockError
from .example_layers import WHO, OneByOne, check_layers, clean, inputs_forgotten, training
from .noise import MARGIN

__all__ = ["ExampleGradients", "clipped_sums"]

CHUNK = 1 << 19
"""How many gradient entries are clipped at once, in float64."""
Draw = Callable[[int], NDArray[Any]]


class ExampleGradients:
    """Clips the gradient of each example during a round's local training.

    While it is attached, opacus' hooks are on the model's layers. Before the optimizer steps, the
    gradient is replaced. Each example's gradient, over all trainable parameters, is clipped and
    truncated toward zero to a grid. So the integer sums of two data sets that differ in one example
    differ by a norm of at most clip / 2^exponent.

    This holds only if an example's gradient depends on no other. opacus derives it from the batch's
    loss, which must be a mean of one term per example: with a sum, one more example would lengthen
    all gradients. `OneByOne` rejects the usual operations that mix examples; it does not detect
    mixup and contrastive losses.

    opacus keeps the gradient of every example of a batch: the memory of the parameters times the
    batch size.

    Args:
        model: the job's own, whose class and layers stay the same.
        clip: L2 norm.
        exponent: e of the grid's step 2^e.
        expected: rate * n, the expected number of examples in a batch.
        counts: how many examples count in each batch of the round; an empty batch has one example,
            which does not count.
        draw: draws `count` numbers of noise, in steps, added at each step; None for no noise.

    Attributes:
        sums: after a step, name to int64 tensor: the sum over examples, in steps, without noise.
        learning_rate: of the last step.
        steps: how many steps the optimizer has taken.

    """

    def __init__(
        self,
        model: nn.Module,
        *,
        clip: float,
        exponent: int,
        expected: float,
        counts: Sequence[int],
        draw: Draw | None = None,
    ) -> None:
        self._model, self._clip, self._exponent = model, clip, exponent
        self._scale, self._counts, self._draw = math.ldexp(1 / expected, exponent), counts, draw
        self._parameters = dict(training(model))
        self._last: dict[str, Tensor] = {}
        self._stepping: Optimizer | None = None
        self._attached = ExitStack()
        self.sums: dict[str, Tensor] = {}
        self.learning_rate = math.nan
        self.steps = 0

    def attach(self) -> None:
        """Attach the hooks.

        Raises:
            ConfigError: opacus is missing, or does not support a layer.

        """
        check_layers(self._model)
        from opacus.grad_sample import GradSampleModule

        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            # from the first layer, whose inputs need no gradient
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            stack.callback(clean, self._model, {m: set(vars(m)) for m in self._model.modules()})
            for module in self._model.modules():
                if getattr(module, "inplace", False) is True:  # backward hooks do not allow it
                    stack.callback(setattr, module, "inplace", True)
                    module.inplace = False  # type: ignore[assignment]
            stack.callback(GradSampleModule(self._model).to_standard_module)
            stack.callback(register_optimizer_step_pre_hook(self._before).remove)
            stack.callback(register_optimizer_step_post_hook(self._after).remove)
            stack.enter_context(OneByOne())
            self._last = self._values()
            self._attached = stack.pop_all()

    def detach(self) -> None:
        """Remove the hooks: the model is as before, but for its numbers. Idempotent."""
        self._attached.close()

    def check(self) -> None:
        """After training: check that the trainer used exactly the given batches.

        Raises:
            LockError: a batch had no step, or the parameters changed in another way.

        """
        if self.steps < len(self._counts):
            raise LockError(
                f"{WHO}: of {len(self._counts)} batches the trainer took a step by {self.steps}: "
                "it must train the model that FedML gives it, on the data that it is given, by an "
                "optimizer of torch's"
            )
        self._check_unchanged(self._values())

    def check_sent(self, payload: Mapping[str, Tensor]) -> None:
        """Check that the parameters to send are those after the last step.

        Raises:
            LockError: they differ.

        """
        self._check_unchanged({n: t for n, t in payload.items() if n in self._last})

    def check_step(self, base: Mapping[str, Tensor], payload: Mapping[str, Tensor]) -> None:
        """Check that a payload is the base after one step of plain SGD, to rounding.

        Raises:
            LockError: naming the first tensor that differs.

        """
        rate = self.learning_rate
        for name, sums in self.sums.items():
            if name not in payload:
                continue
            since, now = base[name].cpu(), payload[name].cpu()
            step = rate * self._scale * sums.cpu().double()
            room = 8 * torch.finfo(since.dtype).eps * (since.double().abs() + step.abs())
            if not ((now.double() - (since.double() - step)).abs() <= room).all():
                raise LockError(
                    f"{WHO}: {name} is not what plain SGD makes of it in a step: with steps: 1 "
                    "use no momentum, weight decay or other optimizer; steps: 2 and more allow "
                    "them"
                )

    def _before(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if self._stepping or held.isdisjoint(map(id, self._parameters.values())):
            return  # an optimizer that calls another takes one step
        with torch.no_grad():
            if self.steps == len(self._counts):
                raise LockError(
                    f"{WHO}: the trainer takes a step beyond the {self.steps} of a round that "
                    "keylock.noise.steps declares: set epochs: 1, use one optimizer, or declare it"
                )
            self._check_unchanged(self._values())
            samples = self._gathered(held)
            count = self._counts[self.steps]
            self.sums = clipped_sums(
                {name: sample[:count] for name, sample in samples.items()},
                self._clip,
                self._exponent,
            )
            self.learning_rate = _rate_of(optimizer)
            for name, parameter in self._parameters.items():
                total = self.sums[name].double()
                if self._draw is not None:
                    drawn = torch.from_numpy(self._draw(total.numel()))
                    total += drawn.reshape(total.shape).to(total.device)
                parameter.grad = (total * self._scale).to(parameter)
            self.steps += 1
            self._forget()
            self._stepping = optimizer

    def _after(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        if optimizer is not self._stepping:
            return
        if any(p.grad_sample is not None for p in self._parameters.values()):  # type: ignore[attr-defined]
            raise LockError(
                f"{WHO}: the optimizer computed gradients within its step, as with a closure, and "
                "used them unclipped: call backward() first, and step() without a closure"
            )
        self._last, self._stepping = self._values(), None

    def _gathered(self, held: set[int]) -> dict[str, Tensor]:
        """For each trainable parameter, the gradients of the batch's examples, ``(b, *shape)``."""
        size = max(1, self._counts[self.steps])
        found = {}
        for name, parameter in self._parameters.items():
            sample, grad = parameter.grad_sample, parameter.grad  # type: ignore[attr-defined]
            if sample is None and (grad is None or not grad.any()):  # not used in this batch
                sample = parameter.new_zeros((size, *parameter.shape))
            elif id(parameter) not in held:
                raise LockError(
                    f"{WHO}: {name} has a gradient and is not in the optimizer: give it all "
                    "parameters that train, and the others requires_grad_(False)"
                )
            elif not isinstance(sample, Tensor) or len(sample) != size:
                raise LockError(
                    f"{WHO}: the gradient of {name} is not that of the examples that the "
                    "trainer was given, one by one and once: it must train on the batches as they "
                    "come, with a step after each, and a layer's input must have an example a row"
                )
            elif not _is_mean(sample, grad):
                raise LockError(
                    f"{WHO}: the gradient of {name} is not the mean of the examples': the loss "
                    "has other terms, such as a penalty on weights, or the trainer clips or scales "
                    "gradients; leave that out, as each example's is clipped already"
                )
            found[name] = sample
        return found

    def _values(self) -> dict[str, Tensor]:
        return {name: p.detach().cpu().clone() for name, p in self._parameters.items()}

    def _check_unchanged(self, now: Mapping[str, Tensor]) -> None:
        for name, value in now.items():
            if value.shape != self._last[name].shape or not torch.equal(
                value.cpu(), self._last[name]
            ):
                raise LockError(
                    f"{WHO}: {name} has changed other than by an optimizer's step, which noise "
                    "does not cover: change parameters only by the optimizer"
                )

    def _forget(self) -> None:
        """Drop what opacus holds of a batch."""
        for parameter in self._parameters.values():
            parameter.grad_sample = None  # type: ignore[attr-defined]
            parameter._forward_counter = 0  # type: ignore[attr-defined]
            vars(parameter).pop("_current_grad_sample", None)
        inputs_forgotten(self._model)


def clipped_sums(samples: Mapping[str, Tensor], clip: float, exponent: int) -> dict[str, Tensor]:
    """Sum the examples' gradients, each clipped and truncated to a grid.

    Args:
        samples: for each parameter ``(b, *shape)``, one gradient for each of b examples. A gradient
            that is not finite counts as 0.
        clip: L2 norm of an example's gradient, over all parameters together.
        exponent: e of the grid's step 2^e.

    Returns:
        For each parameter an int64 tensor, in steps.

    Raises:
        LockError: an example's integers exceed the clip.

    Example:
        >>> clipped_sums({"w": torch.tensor([[3.0, 4.0], [0.1, 0.0]])}, clip=1.0, exponent=-2)
        {'w': tensor([2, 3])}

    """
    limit = math.ldexp(clip, -exponent)
    sums = {n: torch.zeros(s.shape[1:], dtype=torch.int64) for n, s in samples.items()}
    size = sum(total.numel() for total in sums.values())
    count = len(next(iter(samples.values())))
    each = max(1, CHUNK // max(1, size))
    for start in range(0, count, each):
        part = {
            name: sample[start : start + each].flatten(1).to(torch.float64, copy=True)
            for name, sample in samples.items()
        }
        norms = torch.stack([torch.linalg.vector_norm(own, dim=1) for own in part.values()])
        norm = torch.linalg.vector_norm(norms, dim=0)
        factor = (clip * MARGIN / norm).clamp(max=1.0).mul(2.0**-exponent)[:, None]
        none, sent = ~torch.isfinite(norm), torch.zeros_like(norm)
        for name, own in part.items():
            steps = own.mul_(factor).trunc_()
            if none.any():
                steps[none] = 0.0
            sent += torch.linalg.vector_norm(steps, dim=1) ** 2
            sums[name] += steps.sum(0).long().reshape(sums[name].shape).cpu()
        if (sent > limit**2).any():
            raise LockError(f"{WHO}: an example's clipped gradient is longer than its clip")
    return sums


def _is_mean(sample: Tensor, grad: Tensor | None) -> bool:
    """Whether a gradient is the mean of the samples, to rounding."""
    if grad is None:
        return False
    size = torch.linalg.vector_norm(sample.flatten(1), 1, dim=0).max() / len(sample)
    room = size * max(1e-4, 32 * torch.finfo(sample.dtype).eps)
    off = (sample.mean(0) - grad).abs().max()
    return bool(off <= room) or not bool(torch.isfinite(off))


def _rate_of(optimizer: Optimizer) -> float:
    rates = {float(group["lr"]) for group in optimizer.param_groups}
    if len(rates) != 1 or not all(0 <= rate < math.inf for rate in rates):
        raise LockError(f"{WHO}: the optimizer must have one learning rate for all parameters")
    return rates.pop()
