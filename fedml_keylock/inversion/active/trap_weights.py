"""The trap-weights attack: recovers pictures from units that a single picture activates."""

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
"""Steps of the bisection for the scaling."""


@checked
class TrapWeightsAttack:
    """Recovers exactly the pictures that alone activate a unit of the first linear layer.

    Half of each row's weights are negative; the others have the same sizes, scaled down a little.
    So a unit is active only for pictures that are bright where its row is positive. If one picture
    of a batch activates a unit, the weight's gradient over the bias's is that picture.

    Convolutions before the layer are handled as by `ImprintAttack`. More units find more pictures.

    Attributes:
        name: the attack's name in reports.
        scaling: scaling of the positive weights if there are no public data.
        active: share of pictures that should activate a unit; public data tune the scaling to it.
        signal: see `ImprintAttack`.
        growth: see `ImprintAttack`.

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
    """Nothing from a lock; but the server must send the weights of `arm`."""
    uses: ClassVar[frozenset[str]] = frozenset()
    """Nothing: it divides gradients."""

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
        """Make one state for all silos; see `ActiveAttack.arm`."""
        path, state = opened(self.name, model, input_shape, bounds)
        weight = state[under(path.linear, "weight")]
        size = prod(path.inside) // 2
        drawn = torch.randn(len(weight), size, generator=generator).abs()
        # positive weights in another order, and both at random places
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
        """The scaling at which the wanted share of public data, ``(m, units)``, is active."""
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
        """Divide the gradients of units that a single picture activated; see `ImprintAttack`.

        Such units are identified as there. A picture that several units found is returned once.
        """
        return read_rows(
            self, updates, model, knowledge, armed=_is_trap, apart=_as_they_are, progress=progress
        )


def _as_they_are(rows: Tensor) -> Tensor:
    return rows


def _is_trap(rows: Tensor, biases: Tensor) -> bool:
    """Whether each row's positive weights are its negative ones, scaled by one number for all."""
    ordered = rows.double().sort(1).values
    half = int((ordered[0] < 0).sum())
    if not half or bool(biases.any()):
        return False
    negative, positive = -ordered[:, :half].flip(1), ordered[:, -half:]
    ratio = float(positive.sum() / negative.sum())
    return ratio > 0 and torch.allclose(positive, ratio * negative, rtol=1e-4)
