"""The settings of a search for candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from ...errors import ConfigError
from ...settings import Count, Natural, NotNegative, Positive, Share, checked
from ..cost import COSTS
from ..labels import ILRG, RECOVERIES
from ..unknowns.pixels import Parametrisation, Pixels

__all__ = ["SearchSettings"]


@checked
class SearchSettings:
    """An attack's configuration: objective, starts and optimiser.

    Attributes:
        name: the attack's name in reports.
        optimizer: ``adam`` (box constraint, learning rate times 0.1 after 3/8, 5/8 and 7/8 of the
            steps), ``lbfgs`` (no line search, no constraint until the end), ``rmsprop``, or ``cma``
            (CMA-ES: no gradient; its steps are generations).
        cost: one of ``cost.COSTS``. ``lbfgs`` needs a smooth one: not ``l1``, and none with
            Wasserstein.
        steps: number of steps of the optimiser.
        inner: iterations in a step of L-BFGS, each one evaluation of the model's gradient, as
            ``max_iter`` of ``torch.optim.LBFGS``. Other optimisers have one.
        restarts: number of candidates for each update, each from its own start.
        learning_rate: learning rate of the images, in the unit of their ``parametrisation``. For
            pixels that is a quarter of the bounds' width, about the standard deviation by which
            published attacks normalise images. For L-BFGS it is the rate of the whole step, for
            CMA-ES the first deviation of all unknowns.
        secret_learning_rate: learning rate of the secrets, for Adam and RMSprop, in their own unit.
        momentum: momentum of RMSprop.
        population: population of CMA-ES; 0 for its authors' default.
        signed: Adam uses only the sign of the images' gradient.
        alternate: for Adam and RMSprop, images and secrets take turns of this many steps; 0 changes
            both at every step.
        total_variation: weight of the prior on total variation, for pixels in units of the bounds'
            width.
        squared_norm: weight of the prior on the squared norm, for pixels measured from the middle
            of the bounds.
        group_consistency: weight of the prior that draws restarts to their mean; no effect with one
            restart.
        batch_norm: weight of the prior on ``Knowledge.statistics``; no effect without them.
        enough: a candidate stops once its cost is at most this; 0 uses every step.
        parametrisation: the unknowns that stand for images, and their start.
        labels: unknown labels are first recovered from the gradient (``recover``, for cross entropy
            only) or optimised with the images (``optimise``, for any loss).
        recovery: one of ``labels.RECOVERIES`` or ``ilrg``, for batches; the label of a single image
            is exact.
        surrogate: for several local steps: match the gradient at one state between before and
            after, whose place is searched too, in place of simulating the steps.
        surrogate_learning_rate: learning rate of that place, which goes from 0 to 1.
        layer_weights: pattern of a parameter's name to the weight of its gradient in the cost. The
            weight is 1 if no pattern matches; 0 leaves the parameter out.
        memory: approximate MiB for the candidates of one batch.
        chunk: number of candidates in a batch, in place of a bound on memory. Dependent candidates
            (by group consistency, or secrets that rounds share) always stay together.

    """

    name: str
    optimizer: Literal["adam", "lbfgs", "rmsprop", "cma"]
    cost: str
    steps: Count
    inner: Count = 1
    restarts: Count = 1
    learning_rate: Positive = 0.1
    secret_learning_rate: Positive = 0.01
    momentum: Share = 0.0
    population: Natural = 0
    signed: bool = False
    alternate: Natural = 0
    total_variation: NotNegative = 0.0
    squared_norm: NotNegative = 0.0
    group_consistency: NotNegative = 0.0
    batch_norm: NotNegative = 0.0
    enough: NotNegative = 0.0
    parametrisation: Parametrisation = field(default_factory=Pixels)
    labels: Literal["recover", "optimise"] = "recover"
    recovery: str = "bias"
    surrogate: bool = False
    surrogate_learning_rate: Positive = 0.001
    layer_weights: Mapping[str, NotNegative] = field(default_factory=dict)
    memory: Count = 256
    chunk: Count | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("cost", tuple(COSTS)), ("recovery", (*RECOVERIES, ILRG))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} {getattr(self, name)!r} is none of {', '.join(allowed)}")
        if self.optimizer != "lbfgs" and self.inner != 1:
            raise ConfigError(f"inner is for lbfgs: {self.optimizer} has one evaluation a step")
        if self.optimizer not in ("adam", "rmsprop") and self.alternate:
            raise ConfigError(f"alternate is for adam and rmsprop, not {self.optimizer}")
        if self.optimizer != "adam" and self.surrogate:
            raise ConfigError(
                f"surrogate is for adam, which keeps it in its box: not for {self.optimizer}"
            )
        if self.optimizer == "cma" and self.group_consistency:
            raise ConfigError("group_consistency is not for cma, whose candidates never meet")
