"""How candidates are searched for."""

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
    """An attack's configuration: what is minimised, from where, and how long.

    Attributes:
        name: what a report calls it.
        optimizer: ``adam`` (box constraint, learning rate times 0.1 after 3/8, 5/8 and 7/8 of the
            steps), ``lbfgs`` (no line search, no constraint until the end), ``rmsprop``, or ``cma``
            (CMA-ES: no gradient; its steps are generations).
        cost: one of ``cost.COSTS``. ``l1`` and those with Wasserstein are not smooth: not for
            ``lbfgs``.
        steps: of the optimiser.
        inner: iterations, each one evaluation of the model's gradient, in a step of L-BFGS; as
            ``max_iter`` of ``torch.optim.LBFGS``. Adam has one.
        restarts: candidates for each update, each from its own start.
        learning_rate: of the images, in the unit of their ``parametrisation``: for pixels quarters
            of the bounds' width, which is about the standard deviation by which published attacks
            normalise theirs. L-BFGS: of the whole step. CMA-ES: the first deviation, of everything.
        secret_learning_rate: of the secrets, for Adam and RMSprop, in their own unit.
        momentum: of RMSprop.
        population: of CMA-ES; 0: as many as its authors advise.
        signed: Adam sees the sign of the images' gradient only.
        alternate: for Adam and RMSprop: images and secrets take turns of so many steps; 0: both at
            every step.
        total_variation: weight of the prior, for pixels in units of the bounds' width.
        squared_norm: likewise, for pixels counted from the middle of the bounds.
        group_consistency: likewise; nothing with one restart.
        batch_norm: weight of the prior on ``Knowledge.statistics``; nothing where there are none.
        enough: a candidate whose cost is not above this is done; 0 uses every step.
        parametrisation: what is optimised in the images' place, and where it starts.
        labels: unknown labels are ``recover``-ed from the gradient first, which cross entropy
            alone allows, or ``optimise``-d, whatever they are to the loss.
        recovery: one of ``labels.RECOVERIES`` or ``ilrg``, for batches; the label of one image is
            exact.
        surrogate: of several local steps, the gradient is matched at one state between that before
            and that after them, whose place is searched too, in the place of a simulation of them.
        surrogate_learning_rate: of that place, which goes from 0 to 1.
        layer_weights: weight of a parameter's gradient in the cost by a pattern of its name, 1
            where none fits; 0 leaves it out.
        memory: MiB that the candidates which run as one batch may take, about.
        chunk: how many run as one batch, if not by their memory. Either way those that depend on
            one another (group consistency, secrets that rounds share) stay together.

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
