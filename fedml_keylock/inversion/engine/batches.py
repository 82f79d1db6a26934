"""Runs an attack's candidates in batches that fit into memory, with an optional checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...tensors import fingerprint
from .checkpoint import Checkpoint
from .evolve import evolve
from .objective import Objective
from .search import Found, parts_of, search
from .search_settings import SearchSettings

__all__ = ["run", "split"]


def split(attack: SearchSettings, objective: Objective, activations: int) -> list[Tensor]:
    """The rows of each batch of candidates. Dependent candidates stay together.

    `activations` is the number of values that the model's layers hold for one candidate.
    """
    chunk = attack.chunk or max(1, attack.memory * 2**18 // _floats(attack, objective, activations))
    bound = torch.arange(len(objective.state))
    if attack.group_consistency:
        bound = bound // attack.restarts
    if objective.leader is not None:
        leader = objective.leader.cpu()
        # group consistency also needs a silo's restarts together
        bound = bound[leader] if attack.group_consistency else leader
    parts: list[Tensor] = []
    for one in sorted(set(bound.tolist())):
        rows = torch.nonzero(bound == one).flatten()
        if parts and len(parts[-1]) + len(rows) <= chunk:
            parts[-1] = torch.cat([parts[-1], rows])
        else:
            parts.append(rows)
    return [part.to(objective.state.device) for part in parts]


def _floats(attack: SearchSettings, objective: Objective, activations: int) -> int:
    """Approximate number of floats for one candidate."""
    training, batch = objective.knowledge.training, objective.knowledge.batch
    if attack.surrogate:
        training = None  # one gradient of all images
    silos = objective.knowledge.silos
    steps = 1 if training is None else silos * training.steps(batch // silos)
    images = batch if training is None else min(batch // silos, training.batch_size)
    # gradients, costs, their graph, and activations for two derivatives: measured on LeNet and
    # ResNet-20, a little less than this
    gradient = sum(target[0].numel() for target in objective.targets.values())
    floats = steps * (6 * gradient + 4 * activations * images // batch)
    size = sum(objective.layout.sizes)
    if attack.optimizer == "cma":
        return (attack.population or 4 + int(3 * math.log(size))) * floats
    # L-BFGS keeps a hundred pairs
    return floats + (200 if attack.optimizer == "lbfgs" else 8) * size


def run(
    attack: SearchSettings,
    objective: Objective,
    start: Tensor,
    *,
    parts: Sequence[Tensor],
    generator: torch.Generator,
    progress: Callable[[int, int], None] | None = None,
    checkpoint: Path | None = None,
) -> Found:
    """Search from every start ``(b, d)``, batch by batch.

    `parts` has the rows of each batch. The generator seeds CMA-ES. Progress and checkpoint are
    those of ``GradientInversion.reconstruct``. AttackError if the checkpoint is damaged, of another
    search, or cannot be written.
    """
    file, saved = None, {}
    if checkpoint is not None:
        file = Checkpoint(
            checkpoint, fingerprint(attack, [start, *objective.targets.values(), *parts])
        )
        saved = {name: tensor.to(start.device) for name, tensor in file.load().items()}
    seeds = None
    if attack.optimizer == "cma":
        # draw for all candidates, finished ones too: a resumed search must draw the same
        seeds = torch.randint(1, 2**31, (len(start),), generator=generator).to(start.device)
    evaluations = attack.steps * attack.inner
    made: list[Found] = []

    def report(count: int) -> None:
        if progress is not None:
            progress(len(made) * evaluations + count, len(parts) * evaluations)

    def save(now: Callable[[], dict[str, Tensor]] | None = None) -> None:
        """Write finished batches and the current batch's state, if the interval has passed."""
        if file is None or not file.due():
            return
        states = [vars(found) for found in made] + ([now()] if now else [])
        file.save({f"{i}.{name}": t for i, state in enumerate(states) for name, t in state.items()})

    for index, part in enumerate(parts):
        before = parts_of(saved, f"{index}.")
        if before and "live" not in before:
            made.append(Found(**before))
            continue
        some = objective.select(part)
        if seeds is not None:
            made.append(evolve(attack, some, start[part], report, seeds=seeds[part]))
        else:
            made.append(search(attack, some, start[part], report, state=before, keep=save))
        save()
    if file is not None:
        file.remove()
    back = torch.cat(list(parts)).argsort()
    return Found(
        rows=torch.cat([part.rows for part in made])[back],
        costs=torch.cat([part.costs for part in made])[back],
        history=torch.cat([part.history for part in made], dim=1)[:, back],
        diverged=torch.cat([part.diverged for part in made])[back],
    )
