"""Notices an average in which masks have not cancelled, on the server, before it is sent."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import UpdateRefused

__all__ = ["Averages"]

EXACT = 4 * torch.finfo(torch.float32).eps
"""How far an average in float32 may be from the exact one, over the size of what is averaged and
the square root of how many that are; nineteen times as far as rounding took that of two silos, and
more of more."""


class Averages:
    """The server's own average of a round's updates, by their samples, as FedAvg makes it.

    Masks cancel in that alone. In one of other weights, a little of them is left: it may be as
    large as the weights, and too small to be told from training by who gets it.

    Example:
        >>> averages = Averages()
        >>> averages.came({"w": torch.tensor([4.0])}, 1)
        >>> averages.came({"w": torch.tensor([-2.0])}, 3)
        >>> averages.check({"w": torch.tensor([-0.5])}, who="the server")
        >>> averages.check({"w": torch.tensor([1.0])}, who="the server")
        Traceback (most recent call last):
        fedml_keylock.errors.UpdateRefused: the server: w is not the average of what silos sent...

    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._sizes: dict[str, float] = {}
        self._samples, self._count, self._checked = 0.0, 0, False

    def came(self, state: Mapping[str, Tensor], samples: float) -> None:
        """An update of the round, which has passed the gate; the first after a check begins one."""
        if self._checked:
            self._begin()
        for name, tensor in state.items():
            if tensor.is_floating_point():
                part = tensor.detach().cpu().double() * samples
                self._sums[name] = self._sums.get(name, 0.0) + part
                self._sizes[name] = self._sizes.get(name, 0.0) + float(part.norm())
        self._samples += samples
        self._count += 1

    def check(self, state: Mapping[str, Tensor], *, who: str) -> None:
        """The server is about to send what it has made of the updates.

        Args:
            state: the first of all, before any update came, may be anything.
            who: the server, as the message begins.

        Raises:
            UpdateRefused: it is not their average.

        """
        self._checked = True
        for name, total in self._sums.items():
            sent = state.get(name)
            allowed = EXACT * math.sqrt(self._count) * self._sizes[name]
            if sent is not None and total.shape == sent.shape:
                off = float((sent.detach().cpu().double() * self._samples - total).norm())
                if off <= allowed:
                    continue
            raise UpdateRefused(
                f"{who}: {name} is not the average of what silos sent, weighed by their "
                "samples, in which alone their masks cancel; let the job's aggregator make that "
                "(FedML's own does), or set keylock: {mask: false}"
            )
