"""The imprint attack: isolates single pictures in a sum, by a layer that sorts by brightness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...settings import Positive, checked
from ...tensors import under
from ...types import ClientUpdate, Reconstruction
from ..knowledge import Knowledge, PublicData
from .arming import State
from .single import opened, read_rows

__all__ = ["ImprintAttack"]


@checked
class ImprintAttack:
    """Recovers exactly, even from a sum, pictures that are alone between two brightness thresholds.

    Every row of the first linear layer computes the picture's mean. The biases are thresholds at
    its quantiles in public data, or at even steps without any. After the ReLU, a row's gradient
    sums all pictures brighter than its threshold. The difference of two neighbours' gradients sums
    the pictures between their thresholds. For a single picture, the weight's difference over the
    bias's is that picture. The next layer gets equal columns, so that rows differ in nothing else.

    A FedML server chooses the weights, not the architecture. Convolutions before the layer get
    kernels that pass the picture on. Strides and pools remain, so that the picture is recovered as
    pooled.

    With w thresholds, each of n pictures is alone with probability ``(1 - 1 / w) ** (n - 1)``.

    Attributes:
        name: the attack's name in reports.
        signal: largest change of the next layer's output by all rows together; see `Path.write`.
        growth: bound on a row's update, as a multiple of the largest weight, at a learning rate of
            1. `lock: sealed` clips updates at 16.

    Example:
        >>> ImprintAttack().needs
        frozenset()

    """

    name: str = "imprint"
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
        row = path.brightness(weight)
        ends = torch.stack([torch.full(input_shape, end) for end in bounds])
        least, most = (path.reached(model, state, ends) @ row).tolist()
        shares = (torch.arange(len(weight)) + 0.5) / len(weight)
        seen = torch.tensor([least, most])  # even steps, without public data
        if public is not None:
            seen = path.reached(model, state, public.images) @ row
        thresholds = seen.double().quantile(shares.to(seen).double())
        behind = state[under(path.behind, "weight")]
        behind.copy_(behind[:, :1].clone().expand_as(behind))
        path.write(
            state,
            row.expand_as(weight),
            -thresholds,
            most=len(thresholds) * (most - least),
            signal=self.signal,
            growth=self.growth,
        )
        return {None: state}

    def reconstruct(
        self,
        updates: Sequence[ClientUpdate],
        model: nn.Module,
        *,
        knowledge: Knowledge,
        generator: torch.Generator,
        progress: Callable[[int, int], None] | None = None,
    ) -> Reconstruction:
        """Divide the differences of neighbouring rows' gradients that hold a single picture.

        The bias's difference identifies them: for a single picture it is one of ``classes`` known
        values, by label. For no picture, several or noise it is none of these, and gives no result.
        The cost is the share of ``Knowledge.batch`` pictures that were not found. It is infinite if
        none was found, which counts as diverged and is no success of a defense. Missing pictures
        are grey, with the label -1.

        Updates must be of one plain SGD step per silo, at level ``oblivious``, from the weights of
        `arm`; others are an AttackError.
        """
        return read_rows(
            self, updates, model, knowledge, armed=_sorts, apart=_between, progress=progress
        )


def _sorts(rows: Tensor, biases: Tensor) -> bool:
    """Whether all rows are equal, with rising thresholds."""
    rising = bool((biases.diff() <= 0).all()) and bool(biases[0] > biases[-1])
    return rising and torch.equal(rows, rows[:1].expand_as(rows))


def _between(rows: Tensor) -> Tensor:
    """Each row minus the next: ``(r, ...)``; the last row is unchanged."""
    return torch.cat([rows[:-1] - rows[1:], rows[-1:]])
