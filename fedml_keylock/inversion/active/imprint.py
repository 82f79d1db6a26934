"""Single pictures out of a sum: a first linear layer that sorts them by their brightness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...errors import AttackError
from ...settings import Positive, checked
from ...tensors import under
from ...types import ClientUpdate, Reconstruction
from ..base import SEARCH, check_level, check_one_step
from ..engine.observe import observe
from ..engine.relu_behind import check_relu
from ..knowledge import Knowledge, PublicData
from .base import State, floats, loaded, not_armed
from .path import Path
from .single import Found, different, gathered, of_one, state_of

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
        signal: how much the layer gives at most, over all rows: little, so that what is behind is
            the same for all pictures, and what a picture adds depends on its label alone.

    Example:
        >>> ImprintAttack().needs
        frozenset()

    """

    name: str = "imprint"
    signal: Positive = 1e-4

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
        path = Path.of(self.name, model, input_shape, bounds)
        if path.behind is None:
            raise AttackError(
                f"{self.name} needs a second linear layer right behind {path.linear}, whose "
                "columns it makes the same"
            )
        state = floats(model)
        path.open(model, state)
        weight, bias = (state[under(path.linear, part)] for part in ("weight", "bias"))
        row = path.brightness(weight)
        ends = torch.stack([torch.full(input_shape, end) for end in bounds])
        least, most = (path.reached(model, state, ends) @ row).tolist()
        shares = (torch.arange(len(bias)) + 0.5) / len(bias)
        seen = torch.tensor([least, most])  # anywhere between, if nothing is known
        if public is not None:
            seen = path.reached(model, state, public.images) @ row
        thresholds = seen.double().quantile(shares.to(seen).double())
        small = self.signal / (len(bias) * (most - least))
        weight.copy_((small * row).expand_as(weight))
        bias.copy_(-small * thresholds)
        behind = state[under(path.behind, "weight")]
        behind.copy_(behind[:, :1].expand_as(behind))
        check_relu(self.name, loaded(model, state), path.linear, shape=input_shape, bounds=bounds)
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
        check_level(self, knowledge.level)
        check_one_step(self.name, knowledge, instead=SEARCH)
        observation = observe(updates, model, knowledge)
        path = Path.of(self.name, observation.model, knowledge.input_shape, knowledge.bounds)
        weight, bias = under(path.linear, "weight"), under(path.linear, "bias")
        made: list[Found] = []
        for index in range(len(updates)):
            rows = observation.started(weight)[index]
            thresholds = observation.started(bias)[index]
            falling = bool((thresholds.diff() <= 0).all()) and thresholds[0] > thresholds[-1]
            if not torch.equal(rows, rows[:1].expand_as(rows)) or not falling:
                raise not_armed(self.name)
            state = state_of(observation, index)
            table = path.per_label(observation.model, state, knowledge.loss, knowledge.classes)
            weights, biases = (
                _between(observation.targets[n][index].double()) for n in (weight, bias)
            )
            inputs, labels = of_one(knowledge.batch * weights, knowledge.batch * biases, table)
            images = path.pictures(observation.model, state, inputs)
            made.append(different(images, labels, knowledge.bounds))
            if progress is not None:
                progress(index + 1, len(updates))
        return gathered(self.name, made, knowledge)


def _between(rows: Tensor) -> Tensor:
    """What each row has more than the next: rows ``(r, ...)``, the last as it is."""
    return torch.cat([rows[:-1] - rows[1:], rows[-1:]])
