"""Gradient inversion by optimisation: search for images whose gradient is the one that was sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from ..settings import checked
from ..types import ClientUpdate, Reconstruction
from .base import check_level
from .engine.assemble import assemble, draw_starts
from .engine.batches import run, split
from .engine.objective import Objective
from .engine.observe import observe
from .engine.probe import probe
from .engine.search import Found
from .engine.search_settings import SearchSettings
from .knowledge import Knowledge
from .labels import find_labels

__all__ = ["GradientInversion"]


@checked
class GradientInversion(SearchSettings):
    """A search for images, with its settings. ``presets`` hold the published ones."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """Nothing: it ignores a lock that it knows nothing of."""

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

        It runs on a copy of the model: with ``knowledge.norms`` "train" batch normalisation by
        batch statistics, and dropout and other draws off (see `switch_off`). Candidates that vmap
        cannot run at once run one by one, and a line on stderr says so; of a model without a second
        derivative an AttackError names the layer. Of an update's restarts the one with the lowest
        gradient cost is kept; of rounds that are pooled, the one with the lowest mean over them.

        Beside what `Attack.reconstruct` takes: ``checkpoint``, a file to save the search to every
        minute and to go on from, removed at the end. Call it with the same updates and a generator
        in the same state. (CMA-ES is saved between batches of candidates only.)
        """
        check_level(self, knowledge.level)
        observation = observe(updates, model, knowledge)
        labels, searched = knowledge.labels, self.labels == "optimise"
        if labels is None and not (searched or self.parametrisation.makes_labels):
            labels = find_labels(
                observation.model,
                observation.targets,
                knowledge,
                recovery=self.recovery,
                started=observation.started,
            )
        objective = assemble(self, updates, observation, knowledge, labels, generator)
        objective, activations = probe(objective)
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
