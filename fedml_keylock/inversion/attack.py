"""Gradient inversion by optimisation: search for images whose gradient is the one that was sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import AttackError, ConfigError
from ..types import ClientUpdate, Reconstruction
from .assemble import assemble, draw_starts
from .cost import COSTS
from .knowledge import Knowledge
from .labels import head_gradients, label_of_one
from .objective import Objective, probe
from .observe import Observation, observe
from .search import search

__all__ = ["GradientInversion"]

_PRIORS = ("total_variation", "squared_norm", "group_consistency", "batch_norm")
_FLOATS = 2**26  # 256 MiB: what one chunk of candidates may take, roughly


@dataclass(frozen=True)
class GradientInversion:
    """An attack's configuration. ``reconstruct`` runs it; ``presets`` hold the published ones.

    Attributes:
        name: what a report calls it.
        optimizer: ``adam`` (box constraint, learning rate times 0.1 after 3/8, 5/8 and 7/8 of the
            steps) or ``lbfgs`` (no line search, no constraint until the end).
        cost: one of ``cost.COSTS``. ``l1`` and ``wasserstein`` are not smooth: for ``adam``.
        steps: of the optimiser.
        inner: iterations, each one evaluation of the model's gradient, in a step of L-BFGS; as
            ``max_iter`` of ``torch.optim.LBFGS``. Adam has one.
        restarts: candidates for each update, each from its own start.
        learning_rate: of the images. For Adam in quarters of the bounds' width, which is about the
            standard deviation by which the published attack normalises its pixels.
        secret_learning_rate: of the secrets, for Adam, in their own unit.
        signed: Adam sees the sign of the images' gradient only.
        total_variation: weight of the prior, for pixels in units of the bounds' width.
        squared_norm: likewise, for pixels counted from the middle of the bounds.
        group_consistency: likewise; nothing with one restart.
        batch_norm: weight of the prior on ``Knowledge.statistics``; nothing where there are none.
        enough: a candidate whose cost is not above this is done; 0 uses every step.
        start: the images start from a ``normal`` (mean 0 and deviation 1 for L-BFGS; the middle of
            the bounds and a quarter of their width for Adam) or ``uniform`` draw.
        labels: unknown labels are ``recover``-ed from the gradient first, or ``optimise``-d.
        layer_weights: weight of a parameter's gradient in the cost by name, 1 where not given; 0
            leaves it out.
        chunk: candidates that run as one batch; None: as many as take about 256 MiB. With group
            consistency rounded up to whole updates.

    Raises:
        ConfigError: a field has a value that is not allowed.

    """

    name: str
    optimizer: Literal["adam", "lbfgs"]
    cost: Literal["cosine", "squared_l2", "l1", "wasserstein"]
    steps: int
    inner: int = 1
    restarts: int = 1
    learning_rate: float = 0.1
    secret_learning_rate: float = 0.01
    signed: bool = False
    total_variation: float = 0.0
    squared_norm: float = 0.0
    group_consistency: float = 0.0
    batch_norm: float = 0.0
    enough: float = 0.0
    start: Literal["normal", "uniform"] = "normal"
    labels: Literal["recover", "optimise"] = "recover"
    layer_weights: Mapping[str, float] = field(default_factory=dict)
    chunk: int | None = None

    def __post_init__(self) -> None:
        choices = {
            "optimizer": ("adam", "lbfgs"),
            "cost": tuple(COSTS),
            "start": ("normal", "uniform"),
            "labels": ("recover", "optimise"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} {getattr(self, name)!r} is none of {', '.join(allowed)}")
        for name in ("steps", "inner", "restarts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
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
        if self.optimizer == "adam" and self.inner != 1:
            raise ConfigError("inner is for lbfgs: adam has one evaluation a step")

    def reconstruct(
        self,
        updates: Sequence[ClientUpdate],
        model: nn.Module,
        *,
        knowledge: Knowledge,
        generator: torch.Generator,
        progress: Callable[[int, int], None] | None = None,
    ) -> Reconstruction:
        """Search for the images behind each update.

        The model is not changed. It runs in train mode on a copy: batch normalisation by batch
        statistics, dropout off (the silo's mask is unknown), every other module must be functional.
        Of an update's restarts the one with the lowest gradient cost is kept.

        Args:
            updates: u updates, each of one plain SGD step on ``knowledge.batch`` images with mean
                cross entropy.
            model: as far as the attacker knows it. Its own public values do not matter.
            knowledge: what else the attacker knows.
            generator: source of every start; the same state gives the same result.
            progress: called with evaluations done and evaluations in all.

        Raises:
            AttackError: something of the above does not fit the rest, before any work is done.

        """
        observation = observe(updates, model, knowledge)
        labels = self._labels(observation, knowledge)
        objective = assemble(self, observation, knowledge, labels)
        probe(objective, knowledge)
        rows = draw_starts(self, objective, knowledge, generator)

        chunk = self.chunk or self._chunk(objective)
        if self.group_consistency:
            chunk = -(-chunk // self.restarts) * self.restarts
        runs = -(-len(rows) // chunk)
        evaluations = self.steps * self.inner
        found = []
        for run in range(runs):

            def report(done: int, run: int = run) -> None:
                if progress is not None:
                    progress(run * evaluations + done, runs * evaluations)

            part = torch.arange(run * chunk, min((run + 1) * chunk, len(rows)))
            found.append(search(self, objective.select(part), rows[part], knowledge.bounds, report))
        return self._keep_best(
            objective,
            knowledge,
            rows=torch.cat([part.rows for part in found]),
            costs=torch.cat([part.costs for part in found]),
            history=torch.cat([part.history for part in found], dim=1),
            diverged=torch.cat([part.diverged for part in found]),
        )

    def _labels(self, observation: Observation, knowledge: Knowledge) -> Tensor | None:
        if knowledge.labels is not None:
            return knowledge.labels
        if self.labels == "optimise":
            return None
        if knowledge.batch > 1:
            raise AttackError(
                f"labels of a batch of {knowledge.batch} cannot be recovered from its gradient "
                "yet: give Knowledge.labels, or use an attack that optimises them"
            )
        weight, bias = head_gradients(observation.model, observation.targets, knowledge.classes)
        return label_of_one(weight, bias)[:, None]

    def _chunk(self, objective: Objective) -> int:
        # a gradient, its cost and their graph; and L-BFGS's hundred pairs
        floats = 12 * sum(target[0].numel() for target in objective.targets.values())
        if self.optimizer == "lbfgs":
            floats += 200 * sum(objective.layout.sizes)
        return max(1, min(128, _FLOATS // floats))

    def _keep_best(
        self,
        objective: Objective,
        knowledge: Knowledge,
        *,
        rows: Tensor,
        costs: Tensor,
        history: Tensor,
        diverged: Tensor,
    ) -> Reconstruction:
        updates = len(rows) // self.restarts
        best = costs.view(updates, self.restarts).argmin(1)
        best = best + torch.arange(updates, device=best.device) * self.restarts
        parts = objective.layout.split(rows[best])
        labels = parts["labels"].argmax(-1) if objective.labels is None else objective.labels[best]
        return Reconstruction(
            images=parts["images"].clamp(*knowledge.bounds),
            labels=labels,
            cost=costs[best],
            history=history[:, best],
            diverged=diverged.view(updates, self.restarts).sum(1),
            attack=self.name,
            knowledge=knowledge.level,
        )
