"""Runs the demonstration's three jobs: one example under three defenses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from ..errors import HostError
from ..host.launch import follow

__all__ = ["FULL", "QUICK", "VARIANTS", "Running", "Scale", "example", "start_jobs"]

VARIANTS: Mapping[str, Mapping[str, str] | None] = {
    "none": None,
    "keylock:paper:first": {"lock": "paper"},
    "keylock:sealed": {},
}


@dataclass(frozen=True)
class Scale:
    """The size of a demonstration.

    Attributes:
        rounds: rounds of federated training, single-digit ones included.
        single: number of rounds, at the start and at the end, that train on one digit per silo.
        attacks: attack name to settings for attackers who do not search private state.
        adaptive: attack name to changed settings for attackers who do.
        fresh: number of fresh random locks to try.

    """

    rounds: int
    single: int
    attacks: Mapping[str, Mapping[str, Any]]
    adaptive: Mapping[str, Mapping[str, Any]]
    fresh: int = 5


_INVERTING = {"learning_rate": 0.2, "secret_learning_rate": 0.02, "total_variation": 1e-2}
_DLG = {"start": "uniform", "labels": "recover", "enough": 1e-6}

FULL = Scale(
    rounds=22,
    single=2,
    attacks={
        "inverting_gradients": {**_INVERTING, "steps": 300},
        "dlg": {**_DLG, "steps": 20, "restarts": 2},
    },
    adaptive={"inverting_gradients": {"restarts": 3}, "dlg": {}},
)
QUICK = Scale(
    rounds=7,
    single=1,
    attacks={"inverting_gradients": {**_INVERTING, "steps": 200}},
    adaptive={"inverting_gradients": {}},
    fresh=3,
)


@dataclass(frozen=True)
class Running:
    """A running job: `trained` is set after its last round, `done` at its end.

    A job that failed, or did not start because the one before failed, is `trained` and `failed`.
    """

    trained: threading.Event
    failed: threading.Event
    done: Future[None]


def example() -> Path:
    """The example job's folder: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent.parent
    inside = here / "examples" / "mnist_cross_silo"
    return inside if inside.exists() else here.parent / "examples" / "mnist_cross_silo"


def start_jobs(
    pool: Executor, folders: Mapping[str, Path], scale: Scale, seed: int
) -> list[Running]:
    """Start the jobs in turn, each when the one before is trained and about to end.

    FedML's ranks take ten seconds to end; two jobs that train at once would take longer.
    """
    running: list[Running] = []
    for name, folder in folders.items():
        before = running[-1] if running else None
        trained, failed = threading.Event(), threading.Event()
        done = pool.submit(_run_job, name, folder, scale, seed, before, trained, failed)
        running.append(Running(trained, failed, done))
    return running


def _run_job(
    name: str,
    folder: Path,
    scale: Scale,
    seed: int,
    before: Running | None,
    trained: threading.Event,
    failed: threading.Event,
) -> None:
    """Run the example over MPI as a user would, with the plugin active and the named defense."""
    try:
        if before is not None:
            before.trained.wait()
            if before.failed.is_set():
                raise HostError(f"the job {name} was not started: the one before it failed")
        _train(name, folder, scale, seed, trained.set)
    except BaseException:
        failed.set()
        raise
    finally:
        trained.set()  # always release those who wait for it


def _train(name: str, folder: Path, scale: Scale, seed: int, trained: Callable[[], None]) -> None:
    config = yaml.safe_load((example() / "fedml_config.yaml").read_text())
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
    script = [str(example() / "main.py"), "--cf", "fedml_config.yaml"]
    with (
        (folder / "job.log").open("w") as log,
        tqdm(total=scale.rounds, desc=f"train {name}", unit="round") as bar,
    ):

        def round_over() -> None:
            bar.update()
            if bar.n == scale.rounds:
                bar.close()
                trained()

        follow(ranks, script, folder, log, round_over)
