"""Gradient inversion by optimisation: search for images whose gradient is the one that was sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..types import ClientUpdate, Reconstruction
from .cost import COSTS
from .engine.assemble import assemble, draw_starts
from .engine.objective import Objective, probe
from .engine.observe import Observation, observe
from .engine.run import run, split
from .engine.search import Found
from .knowledge import Knowledge
from .labels import RECOVERIES, head_gradients, label_of_one
from .levels import check_level
from .unknowns.pixels import Parametrisation, Pixels

__all__ = ["GradientInversion"]

_PRIORS = ("total_variation", "squared_norm", "group_consistency", "batch_norm")


@dataclass(frozen=True)
class GradientInversion:
    """An attack's configuration. ``reconstruct`` runs it; ``presets`` hold the published ones.

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
        labels: unknown labels are ``recover``-ed from the gradient first, or ``optimise``-d.
        recovery: one of ``labels.RECOVERIES``, for batches; the label of one image is exact.
        layer_weights: weight of a parameter's gradient in the cost by a pattern of its name, 1
            where none fits; 0 leaves it out.
        memory: MiB that the candidates which run as one batch may take, about.
        chunk: how many run as one batch, if not by their memory. Either way those that depend on
            one another (group consistency, secrets that rounds share) stay together.

    Raises:
        ConfigError: a field has a value that is not allowed.

    """

    name: str
    optimizer: Literal["adam", "lbfgs", "rmsprop", "cma"]
    cost: str
    steps: int
    inner: int = 1
    restarts: int = 1
    learning_rate: float = 0.1
    secret_learning_rate: float = 0.01
    momentum: float = 0.0
    population: int = 0
    signed: bool = False
    alternate: int = 0
    total_variation: float = 0.0
    squared_norm: float = 0.0
    group_consistency: float = 0.0
    batch_norm: float = 0.0
    enough: float = 0.0
    parametrisation: Parametrisation = field(default_factory=Pixels)
    labels: Literal["recover", "optimise"] = "recover"
    recovery: str = "bias"
    layer_weights: Mapping[str, float] = field(default_factory=dict)
    memory: int = 256
    chunk: int | None = None

    def __post_init__(self) -> None:
        choices = {
            "optimizer": ("adam", "lbfgs", "rmsprop", "cma"),
            "cost": tuple(COSTS),
            "labels": ("recover", "optimise"),
            "recovery": tuple(RECOVERIES),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} {getattr(self, name)!r} is none of {', '.join(allowed)}")
        for name in ("steps", "inner", "restarts", "memory"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("alternate", "population"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be below 0, not {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum must be at least 0 and below 1, not {self.momentum}")
        for name in (*_PRIORS, "enough"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be a number from 0 on, not {getattr(self, name)}")
        for name in ("learning_rate", "secret_learning_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.chunk is not None and self.chunk < 1:
            raise ConfigError(f"chunk must be at least 1, not {self.chunk}")
        if any(not weight >= 0 for weight in self.layer_weights.values()):
            raise ConfigError("layer_weights must not be below 0")
        if self.optimizer != "lbfgs" and self.inner != 1:
            raise ConfigError(f"inner is for lbfgs: {self.optimizer} has one evaluation a step")
        if self.optimizer not in ("adam", "rmsprop") and self.alternate:
            raise ConfigError(f"alternate is for adam and rmsprop, not {self.optimizer}")
        if self.optimizer == "cma" and self.group_consistency:
            raise ConfigError("group_consistency is not for cma, whose candidates never meet")

    @property
    def needs(self) -> frozenset[str]:
        """Nothing: it ignores a lock that it knows nothing of."""
        return frozenset()

    @property
    def uses(self) -> frozenset[str]:
        """Public data are for attacks that train."""
        uses = {"kind", "peer", "private state"}
        if self.batch_norm:
            uses.add("statistics")
        if self.optimizer in ("adam", "rmsprop"):
            uses.add("rounds")  # the others treat candidates as unrelated
        return frozenset(uses)

    def reconstruct(
        self,
        updates: Sequence[ClientUpdate],
        model: nn.Module,
        *,
        knowledge: Knowledge,
        generator: torch.Generator,
        progress: Callable[[int, int], None] | None = None,
        checkpoint: Path | None = None,
    ) -> Reconstruction:
        """Search for the images behind each update.

        The model is not changed. It runs on a copy: with ``knowledge.norms`` "train" batch
        normalisation by batch statistics and dropout off (the silo's mask is unknown); every other
        module must be functional. Of an update's restarts the one with the lowest gradient cost is
        kept; of rounds that are pooled, the one with the lowest mean over them.

        Args:
            updates: u updates, each made as ``knowledge`` says; without ``training``, by one plain
                SGD step on ``knowledge.batch`` images with mean cross entropy.
            model: as far as the attacker knows it. Its own public values do not matter.
            knowledge: what else the attacker knows.
            generator: source of every start; the same state gives the same result.
            progress: called with evaluations done and evaluations in all.
            checkpoint: a file to save the search to every minute and to go on from, removed at the
                end. Call it with the same updates and a generator in the same state. (CMA-ES is
                saved between batches of candidates only.)

        Raises:
            AttackError: something of the above does not fit the rest, before any work is done.

        """
        check_level(self, knowledge.level)
        observation = observe(updates, model, knowledge)
        labels = self._labels(observation, knowledge)
        objective = assemble(self, updates, observation, knowledge, labels, generator)
        activations = probe(objective)
        found = run(
            self,
            objective,
            draw_starts(self, objective, knowledge, generator),
            parts=split(self, objective, activations),
            generator=generator,
            progress=progress,
            checkpoint=checkpoint,
        )
        return self._keep_best(objective, knowledge, found)

    def _labels(self, observation: Observation, knowledge: Knowledge) -> Tensor | None:
        if knowledge.labels is not None:
            return knowledge.labels
        if self.labels == "optimise" or self.parametrisation.makes_labels:
            return None
        weight, bias = head_gradients(observation.model, observation.targets, knowledge.classes)
        if knowledge.batch == 1:
            return label_of_one(weight, bias)[:, None]
        return RECOVERIES[self.recovery](weight, bias, knowledge.batch)

    def _keep_best(
        self, objective: Objective, knowledge: Knowledge, found: Found
    ) -> Reconstruction:
        costs = found.costs.view(-1, self.restarts)
        if objective.leader is not None:
            # one private state for all rounds of a silo: one restart for all of them
            silo = objective.leader.view(-1, self.restarts)[:, 0] // self.restarts
            costs = torch.zeros_like(costs).index_add(0, silo, costs)[silo]
        best = costs.argmin(1)
        best = best + torch.arange(len(best), device=best.device) * self.restarts
        images, labels = (part[best] for part in objective.images(found.rows))
        return Reconstruction(
            images=images.clamp(*knowledge.bounds),
            labels=labels,
            cost=found.costs[best],
            history=found.history[:, best],
            diverged=found.diverged.view(-1, self.restarts).sum(1),
            attack=self.name,
            knowledge=knowledge.level,
        )
