"""What the demonstration's jobs gave away, and what the lock cost."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from tqdm import tqdm

from ..builtin import KeyLockDefense
from ..evaluation.capture import Capture
from ..evaluation.leakage import LeakageRow
from ..evaluation.metrics import mean_interval
from ..evaluation.report import Gallery
from ..evaluation.run import attack_updates, knowledge_of
from ..keylock import (
    Vault,
    effective_state,
    load_private_state_dict,
    lock_model,
    private_state_dict,
)
from ..plugins import metrics, one_of
from ..types import ClientUpdate, Reconstruction
from .jobs import VARIANTS, Scale, example

__all__ = ["Leakage", "accuracy", "attack_all", "example_data"]

UNTRAINED_ONLY = ("dlg",)
"""Attacks that are run on the first rounds only: at trained weights DLG fails without any defense
(measured, aligned SSIM .26), so that its failure there would say nothing of one."""


@dataclass(frozen=True)
class Leakage:
    """Every attack's scores, and the pictures of one stage: originals and reconstructions."""

    rows: list[LeakageRow]
    galleries: list[Gallery]
    originals: Tensor


@dataclass(frozen=True)
class _Task:
    """One attack at one level on one job's captured updates; run in a process of its own."""

    folder: Path
    variant: str
    attack: str
    level: str
    settings: Mapping[str, Any]
    before: int
    seed: int


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_example_{name}", example() / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def example_data(folder: Path) -> tuple[Any, dict[int, Any]]:
    """Test images ``(n, 1, 28, 28)`` and labels ``(n,)``, and each silo's loader, as in the job."""
    sections = yaml.safe_load((folder / "fedml_config.yaml").read_text()).values()
    args = SimpleNamespace(**{key: value for section in sections for key, value in section.items()})
    dataset = _load("data").load_data(args)
    return dataset[3].dataset.tensors, dataset[5]


def accuracy(name: str, folder: Path, scale: Scale) -> dict[str, dict[str, float | int | None]]:
    """Accuracy of the final global model: on the server, under each silo's lock, under new ones."""
    (images, labels), _ = example_data(folder)
    model = _load("model").LeNet()
    model.load_state_dict(Capture.open(folder / "leakage" / "capture").final())

    def correct(candidate: nn.Module) -> float:
        candidate.eval()
        with torch.no_grad():
            return float((candidate(images).argmax(1) == labels).float().mean())

    result = {"server": mean_interval([correct(model)])}
    settings = VARIANTS[name]
    if settings is None:
        return result
    defense = KeyLockDefense(settings)
    own = [_with_silos_lock(model, defense, folder, silo) for silo in range(3)]
    result["own_lock"] = mean_interval([correct(one) for one in own])
    fresh = []
    for index in range(scale.fresh):
        candidate = deepcopy(model)
        lock_model(candidate, defense.config)
        # a new lock has seen no data: give it a silo's statistics, so that it fails for its key
        state = private_state_dict(candidate)
        known = private_state_dict(own[index % len(own)])
        state |= {n: t for n, t in known.items() if "running_" in n}
        load_private_state_dict(candidate, state)
        fresh.append(correct(candidate))
    result["fresh_lock"] = mean_interval(fresh)
    return result


def _with_silos_lock(
    model: nn.Module, defense: KeyLockDefense, folder: Path, silo: int, at: int | None = None
) -> nn.Module:
    """A copy of the model under a silo's lock: as it is, or as it was when a round began."""
    vault = Vault(folder / defense.config.vault, silo, defense.describe(model).layout)
    copy = deepcopy(model)
    lock_model(copy, defense.config)
    vault.load(copy, None if at is None else vault.history_path(at))
    return copy


def _tasks(folders: Mapping[str, Path], scale: Scale, seed: int) -> Iterator[_Task]:
    for attack, settings in scale.attacks.items():
        for variant, folder in folders.items():
            levels = ("oblivious",) if variant == "none" else ("adaptive", "oracle", "oblivious")
            for level in levels:
                more = scale.adaptive[attack] if level == "adaptive" else {}
                before = scale.single if attack in UNTRAINED_ONLY else scale.rounds
                yield _Task(folder, variant, attack, level, {**settings, **more}, before, seed)


def _run_task(task: _Task) -> Reconstruction:
    """Attack every captured update of a job. Runs in a worker, which is given no truth."""
    updates = _captured(task)
    model = _load("model").LeNet()
    settings = VARIANTS[task.variant]
    defense = KeyLockDefense(settings) if settings is not None else None
    surrogate = defense.surrogate(model) if defense else None
    given = None
    if defense is not None and task.level == "oracle":
        given = _silos_secrets(model, defense, task.folder, updates)
    knowledge = knowledge_of(
        task.level, input_shape=(1, 28, 28), classes=10, surrogate=surrogate, given=given
    )
    return attack_updates(
        one_of("attacks", task.attack)(**task.settings),
        updates,
        model,
        knowledge=knowledge,
        surrogate=surrogate,
        seed=task.seed,
    )


def _captured(task: _Task) -> list[ClientUpdate]:
    updates = Capture.open(task.folder / "leakage" / "capture").updates()
    return [u for u in updates if u.round < task.before]


def _silos_secrets(
    model: nn.Module, defense: KeyLockDefense, folder: Path, updates: list[ClientUpdate]
) -> dict[str, Tensor]:
    """For the oracle: what each silo's lock came to when the attacked round began."""
    states = [
        effective_state(_with_silos_lock(model, defense, folder, u.silo, u.round)) for u in updates
    ]
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def attack_all(folders: Mapping[str, Path], scale: Scale, seed: int) -> Leakage:
    """Every attack on every job, scored against the truth."""
    (public, public_labels), loaders = example_data(folders["none"])
    updates = Capture.open(folders["none"] / "leakage" / "capture").updates()
    digits = [loaders[u.silo].single_digit(u.round) for u in updates]
    truth = torch.cat([image for image, _ in digits])
    labels = torch.cat([label for _, label in digits])
    stages = {
        "trained": torch.tensor([u.round >= scale.single for u in updates]),
        "untrained": torch.tensor([u.round < scale.single for u in updates]),
    }
    torch.set_num_threads(1)
    rows = list(_baselines(public, public_labels, truth, labels, stages, scale))
    shown = "untrained"  # the weights at which every attack is run
    galleries = []
    tasks = list(_tasks(folders, scale, seed))
    made: dict[int, Reconstruction] = {}
    # forked, so that no worker imports everything again; safe, as this process has no torch threads
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(len(tasks), os.cpu_count() or 1), mp_context=context) as pool:
        running = {pool.submit(_run_task, task): index for index, task in enumerate(tasks)}
        with tqdm(total=len(tasks), desc="attack", unit="attack", leave=False) as bar:
            for done in as_completed(running):
                made[running[done]] = done.result()
                bar.update()
    for index, task in enumerate(tasks):
        result = made[index]
        level = "none" if task.variant == "none" else task.level
        name = f"{task.variant}, {task.attack}" + ("" if level == "none" else f", {level}")
        for stage, wanted in stages.items():
            attacked = wanted[: len(result.images)]
            if stage == shown and attacked.any():
                galleries.append(Gallery(name, result.images[attacked, 0]))
            # an update of which every restart diverged was not reconstructed: no defense's merit
            chosen = (attacked & result.cost.isfinite()).nonzero().flatten()
            if not len(chosen):
                continue
            rows.append(
                LeakageRow(
                    attack=task.attack,
                    knowledge=level,
                    defense=task.variant,
                    round=0 if stage == "untrained" else scale.rounds - 1,
                    stage=stage,
                    images=len(chosen),
                    metrics={
                        **_scores(result.images[chosen, 0], truth[chosen]),
                        "label_accuracy": mean_interval(
                            (result.labels[chosen, 0] == labels[chosen]).float()
                        ),
                    },
                    cost=mean_interval(result.cost[chosen]),
                )
            )
    return Leakage(rows, galleries, truth[stages[shown]])


def _baselines(
    public: Tensor,
    public_labels: Tensor,
    truth: Tensor,
    labels: Tensor,
    stages: Mapping[str, Tensor],
    scale: Scale,
) -> Iterator[LeakageRow]:
    """What public images alone give, without any gradient: a score means nothing below this."""
    of_class = torch.stack([public[public_labels == label].mean(0) for label in labels])
    anyone = public.mean(0).expand_as(truth)
    chosen = stages["trained"]
    for name, guess in (("mean image", anyone), ("mean image of the class", of_class)):
        yield LeakageRow(
            attack=name,
            knowledge="no gradient",
            defense="none",
            round=scale.rounds - 1,
            stage="trained",
            images=int(chosen.sum()),
            metrics=_scores(guess[chosen], truth[chosen]),
            cost={},
        )


def _scores(images: Tensor, truth: Tensor) -> dict[str, dict[str, float | int | None]]:
    return {name: mean_interval(metric(images, truth)) for name, metric in metrics().items()}
