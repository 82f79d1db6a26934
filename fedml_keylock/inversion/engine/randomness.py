"""Switches off the random layers of a model, such as dropout."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

__all__ = ["switch_off"]


def switch_off(model: nn.Module, run: Callable[[], object]) -> None:
    """Put only the modules that draw random numbers themselves into eval mode.

    The masks of a silo's dropout and stochastic depth are unknown. Most published attacks run the
    model without them, so that a candidate's cost is the same at every step; so do these. An
    attacker who also searches the masks recovers more (Scheliga et al., "Dropout is NOT All You
    Need to Prevent Gradient Leakage", AAAI 2023). So for silos that train with dropout, a score is
    a lower bound of the leakage. Modules that draw in eval mode too draw the same at every step.

    A module draws if it changes torch's generator. Functional dropout is not covered: see
    `differentiable`.

    Args:
        model: the model; it is changed.
        run: runs the model once, and restores the generator.

    Example:
        >>> model = nn.Sequential(nn.Identity(), nn.RReLU())
        >>> switch_off(model, lambda: model(-torch.ones(1, 2)))
        >>> [module.training for module in model]
        [True, False]

    """
    while True:
        # a module whose parts drew is tested again once these are off
        drew = [module for module in _drawing(model, run) if module.training]
        for module in drew:
            module.training = False
        if not drew:
            return


def _drawing(model: nn.Module, run: Callable[[], object]) -> list[nn.Module]:
    """The innermost modules that change torch's generator."""
    found: list[nn.Module] = []
    running: list[tuple[torch.Tensor, int]] = []

    def enter(*_: object) -> None:
        running.append((torch.get_rng_state(), len(found)))

    def leave(module: nn.Module, *_: object) -> None:
        before, count = running.pop()
        if len(found) == count and not torch.equal(before, torch.get_rng_state()):
            found.append(module)

    handles = []
    for module in model.modules():
        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found
