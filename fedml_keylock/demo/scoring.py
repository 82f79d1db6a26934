"""Scores the demonstration's jobs: what leaked, and what the lock cost in accuracy."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import yaml
from torch import Tensor
from tqdm import tqdm

from ..builtin import keylock
from ..errors import AttackError
from ..evaluation.audit import Rounds, accuracy_by_round
from ..evaluation.audit.controls import recover
from ..evaluation.audit.crew import Pool
from ..evaluation.audit.plan import Task
from ..evaluation.audit.score import Scored, baselines, matched, row_of, score
from ..evaluation.audit.sums import averaged
from ..evaluation.audit.trial import Trial
from ..evaluation.audit.work import Result
from ..evaluation.capture import INDEX, Capture
from ..evaluation.interval import mean_interval
from ..evaluation.leakage import SUM, Interval, LeakageRow, sum_label
from ..evaluation.provenance import data_hash, file_hash
from ..evaluation.report import Gallery
from ..evaluation.vocabulary import defense_name
from ..inversion import PublicData
from ..plugins import attack_of, metrics
from ..silos import fresh_lock_accuracy, own_locks, silo_secrets
from ..types import ClientUpdate
from .jobs import VARIANTS, Scale, example

__all__ = ["Leakage", "accuracy", "attack_all", "example_data", "input_hashes"]

UNTRAINED_ONLY = ("dlg",)
"""Attacks that run on the first rounds only: at trained weights DLG fails without any defense
(measured: aligned SSIM .04), so that its failure there is no evidence."""

SILOS = 3
BASELINES = ("mean image", "mean image of the class")


@dataclass(frozen=True)
class Leakage:
    """Every attack's scores, one stage's originals and reconstructions, and counts.

    The counts are of updates without a picture, by title.
    """

    rows: list[LeakageRow]
    galleries: list[Gallery]
    originals: Tensor
    lost: dict[str, int]


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_example_{name}", example() / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def example_data(folder: Path) -> tuple[PublicData, dict[int, Any]]:
    """The test images ``(n, 1, 28, 28)``, and each silo's data loader, as in the job."""
    sections = yaml.safe_load((folder / "fedml_config.yaml").read_text()).values()
    args = SimpleNamespace(**{key: value for section in sections for key, value in section.items()})
    dataset = _load("data").load_data(args)
    return PublicData(*dataset[3].dataset.tensors), dataset[5]


def input_hashes(folders: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of the test digits, and of each job's settings and of its capture's index."""
    public, _ = example_data(folders["none"])
    found = {"test digits, with labels": data_hash(public.images, public.labels)}
    for name, folder in folders.items():
        found[f"{defense_name(name)}, settings"] = file_hash(folder / "fedml_config.yaml")
        found[f"{defense_name(name)}, capture's index"] = file_hash(
            folder / "leakage" / "capture" / INDEX
        )
    return found


def accuracy(name: str, folder: Path, scale: Scale) -> tuple[dict[str, Interval], Rounds]:
    """Accuracy of the final global model and of the captured rounds.

    Measured on the server and under each silo's lock; for the final model also under fresh locks.
    """
    data, _ = example_data(folder)
    model, capture = _load("model").LeNet(), Capture.open(folder / "leakage" / "capture")
    settings = VARIANTS[name]
    if settings is None:
        return accuracy_by_round(capture, model, data)
    defense = keylock(settings)
    own_lock = own_locks(model, defense, folder / defense.config.vault)
    known, final = defense.attacker_model(model), capture.final()
    result, rounds = accuracy_by_round(capture, model, data, own_lock, attacker_model=known)
    model.load_state_dict(known.read(ClientUpdate(final, final, 1.0)).before)
    silos = len({silo for _, silo in capture.entries()})
    fresh = fresh_lock_accuracy(model, defense, own_lock, data, count=scale.fresh, silos=silos)
    result["fresh_lock"] = mean_interval(fresh)
    return result, rounds


def _tasks(folders: Mapping[str, Path], scale: Scale, seed: int) -> Iterator[tuple[Trial, Task]]:
    """Every attack on every job at every level. No task holds the truth."""
    samples = [u.samples for u in Capture.open(folders["none"] / "leakage" / "capture").each(0)]
    for name, settings in scale.attacks.items():
        for variant, folder in folders.items():
            model = _load("model").LeNet()
            lock = VARIANTS[variant]
            defense = keylock(lock) if lock is not None else None
            before = scale.single if name in UNTRAINED_ONLY else scale.rounds
            capture = Capture.open(folder / "leakage" / "capture")
            updates = tuple(update for update in capture.each() if update.round < before)
            for level in ("oblivious",) if defense is None else ("adaptive", "oracle", "oblivious"):
                more = scale.adaptive[name] if level == "adaptive" else {}
                given, known = None, defense.attacker_model(model) if defense else None
                seen = updates
                if defense is not None and level == "oracle":
                    vaults = folder / defense.config.vault
                    given = silo_secrets(model, own_locks(model, defense, vaults), updates)
                if known is not None and known.update_transform is not None and given is not None:
                    seen = recover(updates, known.update_transform, given)
                trial = Trial(variant, name, level)
                task = Task(
                    trial=trial,
                    seed=0,
                    rows=tuple(range(len(updates))),
                    attack=attack_of(name, {**settings, **more}),
                    updates=seen,
                    given=given,
                    known={"input_shape": (1, 28, 28), "classes": 10},
                    rebuild=None,
                    model=model,
                    attacker_model=known,
                    start=seed,
                )
                yield trial, task
                if defense is not None and defense.seals and level == "oracle":
                    shown = replace(trial, level=sum_label(SILOS - 1))
                    early = [update for update in seen if update.round < scale.single]
                    yield shown, _of_sums(task, early, samples)


def _of_sums(task: Task, opened: Sequence[ClientUpdate], samples: Sequence[float]) -> Task:
    """A colluding silo's view: averages of each opened update with the next silo's.

    The third silo colludes, and has subtracted its own update from the round's average.
    """
    updates = {(update.round, update.silo): update for update in opened}
    made = []
    for (index, silo), one in updates.items():
        pair = one, updates[index, (silo + 1) % SILOS]
        made.append(averaged([replace(update, samples=samples[update.silo]) for update in pair]))
    return replace(
        task,
        trial=replace(task.trial, level="oblivious"),
        rows=tuple(range(len(made))),
        updates=tuple(made),
        given=None,
        known={**task.known, "batch": SILOS - 1},
        attacker_model=None,
    )


def attack_all(folders: Mapping[str, Path], scale: Scale, seed: int) -> Leakage:
    """Every attack on every job, scored against the truth."""
    public, loaders = example_data(folders["none"])
    updates = Capture.open(folders["none"] / "leakage" / "capture").updates()
    digits = [loaders[u.silo].single_digit(u.round) for u in updates]
    truth = torch.stack([image for image, _ in digits])
    labels = torch.stack([label for _, label in digits])
    stages = {
        "trained": torch.tensor([u.round >= scale.single for u in updates]),
        "untrained": torch.tensor([u.round < scale.single for u in updates]),
    }
    late, last = stages["trained"], scale.rounds - 1
    floor = baselines(
        truth[late, 0], labels[late, 0], public, metrics(), stage="trained", round_index=last
    )
    rows = [row for row in floor if row.attack in BASELINES]
    shown = "untrained"  # weights at which every attack runs
    galleries, lost = [], {}
    places = [row + (1 if u.silo + 1 < SILOS else 1 - SILOS) for row, u in enumerate(updates)]
    others = torch.tensor(places)
    for trial, result in _results(list(_tasks(folders, scale, seed))):
        count, own, marks = len(result.images), truth, labels
        if trial.level.startswith(SUM):  # each picture, and the next silo's, in one sum
            own, marks = (torch.cat([part, part[others]], 1) for part in (truth, labels))
        scored = _first(score(result, own[:count], marks[:count], metrics()))
        if missing := int(scored.cost.isnan().sum()):
            lost[trial.title] = missing
        for stage, wanted in stages.items():
            attacked = wanted[:count]
            if not attacked.any():
                continue
            if stage == shown:
                images = matched(result, own[:count])[attacked, 0]
                galleries.append(Gallery(trial.title, images, stage))
            place = 0 if stage == "untrained" else last
            row = row_of(trial, [scored], attacked, stage=stage, round_index=place)
            if row is not None:
                rows.append(row)
    return Leakage(rows, galleries, truth[stages[shown], 0], lost)


def _first(scored: Scored) -> Scored:
    """Scores of each update's first picture; a sum's second picture is another row's first."""
    return replace(scored, metrics={name: one[:, :1] for name, one in scored.metrics.items()})


def _results(tasks: list[tuple[Trial, Task]]) -> Iterator[tuple[Trial, Result]]:
    """The tasks' results, in order."""
    made: dict[int, bytes] = {}
    with tqdm(total=len(tasks), desc="attack", unit="attack", leave=False) as bar:

        def done(index: int, result: bytes | str) -> None:
            if isinstance(result, str):
                raise AttackError(result)
            made[index] = result
            bar.update()

        Pool(os.cpu_count() or 1).run([(task, None) for _, task in tasks], done)
    for index, (trial, _) in enumerate(tasks):
        yield trial, Result.of(made[index])
