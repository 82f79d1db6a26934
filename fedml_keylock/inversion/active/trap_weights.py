"""Pictures of single units: a first linear layer whose units are seldom active."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...settings import Positive, Share, checked
from ...tensors import under
from ...types import ClientUpdate, Reconstruction
from ..knowledge import Knowledge, PublicData
from .arming import State
from .single import opened, read_rows

__all__ = ["TrapWeightsAttack"]

_STEPS = 40
"""Of the bisection for the scaling."""


@checked
class TrapWeightsAttack:
    """Pictures that alone reach a unit of the first linear layer, exactly.

    Half of each row's weights are negative and the others are the same in size, a little smaller:
    what a picture gives is below 0 unless it is bright where the row is positive. Behind a ReLU a
    unit that one picture of a batch has reached has it as the weight's gradient over the bias's.

    Convolutions before the layer are treated as `ImprintAttack` does. The more units the layer has,
    the more pictures are found.

    Attributes:
        name: what a report calls it.
        scaling: of the positive weights, without public data.
        active: the share of pictures that is to reach a unit; by public data the scaling is set so.
        signal: see `ImprintAttack`.
        growth: likewise.

    Example:
        >>> TrapWeightsAttack().scaling
        0.97

    """

    name: str = "trap_weights"
    scaling: Positive = 0.97
    active: Share = 0.01
    signal: Positive = 1e-5
    growth: Positive = 100.0

    needs: ClassVar[frozenset[str]] = frozenset()
    """Nothing of a lock's; but a server that sends its own weights, which `arm` makes."""
    uses: ClassVar[frozenset[str]] = frozenset()
    """Nothing: it divides what came back."""

    def arm(
        self,
        model: nn.Module,
        *,
        silos: int,
        input_shape: tuple[int, ...],
        bounds: tuple[float, float],
        public: PublicData | None,
        generator: torch.Generator,
    ) -> dict[int | None, State]:
        """One state for all silos; see `ActiveAttack.arm`."""
        path, state = opened(self.name, model, input_shape, bounds)
        weight = state[under(path.linear, "weight")]
        size = prod(path.inside) // 2
        drawn = torch.randn(len(weight), size, generator=generator).abs()
        # the positive ones are in another order, and both are anywhere
        mixed = drawn.gather(1, torch.rand(drawn.shape, generator=generator).argsort(1))
        places = torch.rand(len(weight), prod(path.inside), generator=generator).argsort(1)
        negative, positive = (torch.zeros(len(weight), path.width) for _ in range(2))
        negative.scatter_(1, places[:, :size], drawn)
        positive.scatter_(1, places[:, size : 2 * size], mixed)
        scaling = self.scaling
        if public is not None:
            seen = path.reached(model, state, public.images).cpu().float()
            scaling = self._tuned(seen @ positive.T, seen @ negative.T)
        path.write(
            state,
            scaling * positive - negative,
            torch.zeros(len(weight)),
            most=len(weight) * float(positive.sum(1).mean()) * (bounds[1] - bounds[0]),
            signal=self.signal,
            growth=self.growth,
        )
        return {None: state}

    def _tuned(self, positive: Tensor, negative: Tensor) -> float:
        """The scaling at which the wanted share of what is public, ``(m, units)``, is active."""
        low, high = 0.0, 2.0
        for _ in range(_STEPS):
            middle = (low + high) / 2
            if float((middle * positive > negative).float().mean()) < self.active:
                low = middle
            else:
                high = middle
        return high

    def reconstruct(
        self,
        updates: Sequence[ClientUpdate],
        model: nn.Module,
        *,
        knowledge: Knowledge,
        generator: torch.Generator,
        progress: Callable[[int, int], None] | None = None,
    ) -> Reconstruction:
        """Divide the gradients of the units that one picture has reached; see `ImprintAttack`.

        That is seen as there. A picture that several units have found is given once.
        """
        return read_rows(
            self, updates, model, knowledge, armed=_is_trap, apart=_as_they_are, progress=progress
        )


def _as_they_are(rows: Tensor) -> Tensor:
    return rows


def _is_trap(rows: Tensor, biases: Tensor) -> bool:
    """Whether the positive weights of each row are its negative ones, all scaled by one number."""
    ordered = rows.double().sort(1).values
    half = int((ordered[0] < 0).sum())
    if not half or bool(biases.any()):
        return False
    negative, positive = -ordered[:, :half].flip(1), ordered[:, -half:]
    ratio = float(positive.sum() / negative.sum())
    return ratio > 0 and torch.allclose(positive, ratio * negative, rtol=1e-4)
