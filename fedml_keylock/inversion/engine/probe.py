"""Checks before a search whether a model runs, and whether candidates can run under vmap."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...errors import AttackError, KeyLockError, first_line
from ...tensors import copy_of
from ..outputs import described, logits_of
from .exact import differentiable
from .layer_at_fault import layer_at_fault
from .norm_statistics import batch_statistics
from .objective import Objective
from .randomness import switch_off

__all__ = ["probe"]

_APART = 1e-3
"""Largest relative difference of vmap's derivative from a loop's."""


def probe(objective: Objective, *, twice: bool = True) -> tuple[Objective, int]:
    """Try the objective's model, and decide how candidates run.

    Random layers are switched off, see `switch_off`. One candidate is evaluated and differentiated
    with and without vmap. If vmap fails or differs, candidates run one by one, with a notice once.

    Args:
        objective: the objective of any candidates.
        twice: whether the gradient must be differentiable too.

    Returns:
        The objective, and the approximate number of values that the model's layers hold for one
        candidate.

    Raises:
        AttackError: the model does not take the images, gives other logits, does not run a layer
            whose statistics are known, or has no second derivative; names the layer.

    """
    knowledge, model = objective.knowledge, objective.model
    like = next(iter(objective.public.values()))
    state = {name: value[0] for name, value in objective.public.items()}
    state |= {name: value[0].clone() for name, value in objective.fixed.items()}
    low, high = knowledge.bounds
    drawn = torch.rand(
        knowledge.batch, *knowledge.input_shape, generator=torch.Generator().manual_seed(0)
    )
    images = (low + (high - low) * drawn).to(like)
    outputs: list[Any] = []

    def run() -> None:
        with torch.no_grad(), differentiable(), torch.random.fork_rng(devices=[]):
            outputs.append(functional_call(model, state, (images,)))

    held = 0

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal held
        held += output.numel() if isinstance(output, Tensor) else 0

    try:
        switch_off(model, run)
        handles = [m.register_forward_hook(count) for m in model.modules() if not any(m.children())]
        try:
            with batch_statistics(model, objective.statistics) as found:
                run()
        finally:
            for handle in handles:
                handle.remove()
    except KeyLockError:
        raise
    except Exception as error:  # whatever the model raises
        raise AttackError(
            f"the model does not take images of shape {tuple(images.shape)}: {first_line(error)}"
        ) from error
    _check_logits(outputs[-1], (knowledge.batch, *knowledge.outputs))
    idle = sorted(set(objective.statistics) - set(found))
    if idle:
        raise AttackError(f"the model does not run {', '.join(idle)}: it has no statistics")
    return _tried(objective, images, run, twice=twice), held


def _check_logits(output: Any, expected: tuple[int, ...]) -> None:
    logits = logits_of(output)
    if logits.shape != expected:
        raise AttackError(
            f"the model gives {tuple(logits.shape)} where logits {expected} are needed"
        )
    if logits is not output and isinstance(output, tuple | list) and len(output) > 1:
        _say(
            f"the model returns {described(output)}: attacks take a loss of its scores alone; a "
            "silo whose loss has other outputs in it sends more than that explains"
        )


def _tried(
    objective: Objective, images: Tensor, run: Callable[[], object], *, twice: bool
) -> Objective:
    """The objective, set to run candidates at once or one by one."""
    kind, loss = type(objective.model).__name__, f"the loss {objective.knowledge.loss.name}"
    try:
        alone = _slope(replace(objective, vmapped=False), images, twice=twice)
    except Exception as error:  # whatever the model raises
        layer = layer_at_fault(objective.model, run, vmapped=False) or loss
        raise AttackError(
            f"{layer} has no derivative of its gradient, by which attacks search: "
            f"{first_line(error).rstrip('.')}; put another in its place in the attacker's model"
        ) from error
    try:
        together = _slope(objective, images, twice=twice)
    except Exception:
        layer = layer_at_fault(objective.model, run, vmapped=True) or loss
        _say(f"{layer} does not run under vmap: attacks on {kind} take one candidate at a time")
    else:
        if _same(alone, together) or _same_in_double(objective, images, twice=twice):
            return objective
        _say(f"vmap differentiates {kind} wrongly: attacks on it take one candidate at a time")
    return replace(objective, vmapped=False)


def _same(alone: Tensor, together: Tensor) -> bool:
    return bool(torch.dist(alone, together) <= _APART * alone.norm())


def _same_in_double(objective: Objective, images: Tensor, *, twice: bool) -> bool:
    """Whether the difference is rounding, which a deep net's second derivative magnifies."""

    def double(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: v.double() if v.is_floating_point() else v for n, v in state.items()}

    try:
        wide = replace(
            objective,
            model=copy_of(objective.model).double(),
            public=double(objective.public),
            fixed=double(objective.fixed),
            given=double(objective.given),
        )
        alone = _slope(replace(wide, vmapped=False), images.double(), twice=twice)
        return _same(alone, _slope(wide, images.double(), twice=twice))
    except Exception:  # one by one is slower, and safe
        return False


def _slope(objective: Objective, images: Tensor, *, twice: bool) -> Tensor:
    """The derivative of the gradient's norm by the images; without `twice`, the gradient."""
    # two candidates: some layers run under vmap only with one
    rows = torch.zeros(2 if objective.vmapped else 1, dtype=torch.long, device=images.device)
    # one step of training: many would magnify rounding
    some = replace(objective.select(rows), order=None)
    images = images.repeat(len(rows), *[1] * images.dim()).requires_grad_()
    labels = some.labels
    if labels is None:
        empty = images.detach().new_zeros(*images.shape[:2], *objective.knowledge.outputs)
        labels = objective.knowledge.loss.relaxed(empty)
    secrets = objective.knowledge.secrets
    private = dict(some.given)
    if secrets is not None and secrets.draw is not None:
        for name in secrets.names:
            value = objective.model.get_parameter(name).detach()
            private[name] = value.repeat(len(rows), *[1] * value.dim())
    with torch.set_grad_enabled(twice):
        gradients, _ = some.gradients(images, labels, private)
    if not twice:
        return torch.cat([gradient[0].flatten() for gradient in gradients])
    size = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
    # grad() would hide that a layer has no second derivative
    size.backward()  # type: ignore[no-untyped-call]  # torch has none
    if images.grad is None:
        raise RuntimeError("it does not depend on the images")
    return images.grad[0]


@cache
def _say(line: str) -> None:
    """Print a notice once per process, on stderr: FedML's logger would swallow it."""
    logging.getLogger(__name__).warning("%s", line)
