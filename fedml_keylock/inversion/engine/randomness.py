"""What a model draws at random while it runs, switched off."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

__all__ = ["switch_off"]


def switch_off(model: nn.Module, run: Callable[[], object]) -> None:
    """Put every module that draws random numbers by itself into eval mode, and no other.

    The masks of a silo's dropout, stochastic depth and the like are not known. Most attacks of the
    field take the network without them, as a candidate is then the same at every step; so do these.
    An attacker who searches the masks beside the images gets further (Scheliga et al., "Dropout is
    NOT All You Need to Prevent Gradient Leakage", AAAI 2023): of a silo that trains with dropout a
    score is what leaks at the least. What draws in eval mode too draws the same at every step.

    A module draws if torch's generator is another after it ran. Functional dropout is not among
    that: see `differentiable`.

    Args:
        model: is changed.
        run: runs it once, and leaves the generator as it was.

    Example:
        >>> model = nn.Sequential(nn.Identity(), nn.RReLU())
        >>> switch_off(model, lambda: model(-torch.ones(1, 2)))
        >>> [module.training for module in model]
        [True, False]

    """
    while True:
        # a module whose parts drew is looked at again when these are quiet
        drew = [module for module in _drawing(model, run) if module.training]
        for module in drew:
            module.training = False
        if not drew:
            return


def _drawing(model: nn.Module, run: Callable[[], object]) -> list[nn.Module]:
    """The innermost modules after which torch's generator is another."""
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
