"""Gradient inversion by optimisation: searches for images with the same gradient as was sent."""

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
    """A search for images, with its settings. ``presets`` has the published ones."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """Nothing: it can run defense-unaware."""

    @property
    def uses(self) -> frozenset[str]:
        """The optional knowledge that it can use; public data are for attacks that train."""
        uses = {"kind", "peer", "private state"}
        if self.batch_norm:
            uses.add("statistics")
        if self.optimizer in ("adam", "rmsprop"):
            uses.add("rounds")  # other searches treat candidates as unrelated
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

        It runs on a copy of the model. With ``knowledge.norms`` "train", BatchNorm uses batch
        statistics, and dropout and other random layers are off (see `switch_off`). Candidates that
        vmap cannot run together run one by one, with a notice on stderr. For a model without a
        second derivative, an AttackError names the layer. Of an update's restarts, the one with the
        lowest gradient cost is kept; for pooled rounds, the one with the lowest mean cost.

        Beyond `Attack.reconstruct` it takes ``checkpoint``: a file to which it saves the search
        every minute, and from which it continues; removed at the end. Continue with the same
        updates and a generator in the same state. (CMA-ES is saved between batches of candidates
        only.)
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
            # a silo has one private state for all rounds, so all its rounds take the same restart
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
