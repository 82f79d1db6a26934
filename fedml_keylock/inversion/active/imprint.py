"""Single pictures out of a sum: a first linear layer that sorts them by their brightness."""

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
    """Pictures that are alone between two thresholds of brightness, exactly, also out of a sum.

    Every row of the first linear layer takes the picture's mean, and their biases are thresholds at
    its quantiles in public data, or at even steps without any. Behind a ReLU a row adds up all
    brighter pictures, and the difference of two neighbours those between their thresholds: of one
    alone the weight's over the bias's is that picture. The columns of the next layer are made the
    same for all rows, so that neighbours differ in nothing else.

    A server of FedML chooses weights, no architecture. Convolutions before the layer get kernels
    that hand the picture on; strides and pools stay as they are, and what is found is then the
    picture as it was pooled.

    With as many thresholds as w, n pictures are alone with a chance of ``(1 - 1 / w) ** (n - 1)``.

    Attributes:
        name: what a report calls it.
        signal: how much all rows together move the numbers behind at most; see `Path.write`.
        growth: how many times larger than the greatest weight a row's update may be, at a learning
            rate of 1. `lock: sealed` clips it at 16.

    Example:
        >>> ImprintAttack().needs
        frozenset()

    """

    name: str = "imprint"
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
        row = path.brightness(weight)
        ends = torch.stack([torch.full(input_shape, end) for end in bounds])
        least, most = (path.reached(model, state, ends) @ row).tolist()
        shares = (torch.arange(len(weight)) + 0.5) / len(weight)
        seen = torch.tensor([least, most])  # anywhere between, if nothing is known
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
        """Divide the differences of neighbouring rows, where they are those of one picture.

        That is seen in the bias's: of one picture it is what a label adds, of which there are as
        many as classes. A difference of none, of several or of noise is none of these, and no
        result. The cost is the share of ``Knowledge.batch`` pictures that were not found, infinite
        where none was, which counts as diverged: no success of any defense. Their places are grey,
        with the label -1.

        It takes updates of one plain SGD step of each silo, at level ``oblivious``, that began from
        the weights of `arm`, and refuses others by an AttackError.
        """
        return read_rows(
            self, updates, model, knowledge, armed=_sorts, apart=_between, progress=progress
        )


def _sorts(rows: Tensor, biases: Tensor) -> bool:
    """Whether all rows are the same one, under thresholds that rise."""
    rising = bool((biases.diff() <= 0).all()) and bool(biases[0] > biases[-1])
    return rising and torch.equal(rows, rows[:1].expand_as(rows))


def _between(rows: Tensor) -> Tensor:
    """What each row has more than the next: rows ``(r, ...)``, the last as it is."""
    return torch.cat([rows[:-1] - rows[1:], rows[-1:]])
