"""One training of one point: a real FedML job in a folder of its own, once."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import click
import yaml
from points import Point
from safetensors.torch import load_file
from splits import Setting, first_model
from torch import Tensor, nn

from fedml_keylock.builtin import keylock
from fedml_keylock.evaluation.audit import OwnLock
from fedml_keylock.host.launch import environment
from fedml_keylock.locks import Lock
from fedml_keylock.silos import own_locks

SCRIPT = Path(__file__).resolve().with_name("main.py")
BATCH, LEARNING_RATE = 16, 0.1


class DivergedError(Exception):
    """A job whose weights became NaN or infinite. It is a result, and not drawn again."""


def config(point: Point, setting: Setting) -> dict[str, dict[str, Any]]:
    """The job's YAML."""
    lock = None if point.lock is None else {**point.lock, "own_accuracy": False}
    return {
        "common_args": {
            "training_type": "simulation",
            "scenario": "horizontal",
            "random_seed": setting.seed,
            "using_mlops": False,
        },
        "data_args": {"dataset": setting.data, "split": setting.split},
        "model_args": {"model": setting.net},
        "train_args": {
            "federated_optimizer": "FedAvg",
            "client_id_list": "[]",
            "client_num_in_total": setting.silos,
            "client_num_per_round": setting.silos,
            "comm_round": setting.rounds,
            "epochs": 1,
            "batch_size": BATCH,
            "client_optimizer": "sgd",
            "learning_rate": LEARNING_RATE,
            "rival": dict(point.rival),
        },
        "validation_args": {"frequency_of_the_test": setting.rounds},
        "device_args": {"worker_num": 1, "using_gpu": False},
        "comm_args": {"backend": "sp"},
        "tracking_args": {"enable_tracking": False, "enable_wandb": False},
        "defense_args": {
            "enable_defense": lock is not None,
            "defense_type": "keylock",
            "keylock": lock or {},
        },
    }


def train(point: Point, setting: Setting, folder: Path) -> bool:
    """Run the job, unless it was; what was measured of another one's model goes with that.

    Returns:
        Whether it was run.

    Raises:
        DivergedError: it did, now or when it was run.
        ClickException: it ended for another reason.

    """
    job, wanted = folder / "job", yaml.safe_dump(config(point, setting))
    made, lost = job / "global.safetensors", job / "diverged.txt"
    text = job / "fedml_config.yaml"
    if text.exists() and text.read_text() == wanted:
        if lost.exists():
            raise DivergedError(lost.read_text().strip())
        if made.exists():
            return False
    if folder.exists():
        shutil.rmtree(folder)
    job.mkdir(parents=True)
    text.write_text(wanted)
    line = [sys.executable, "-m", "fedml_keylock", str(SCRIPT), "--cf", "fedml_config.yaml"]
    with (job / "job.log").open("w") as log:
        done = subprocess.run(  # noqa: S603  # this environment's own Python
            line, cwd=job, env=environment(1), stdout=log, stderr=log
        )
    said = ["it said nothing", *(job / "job.log").read_text().strip().splitlines()][-1]
    if done.returncode == 0 and not all(v.isfinite().all() for v in global_state(folder).values()):
        done.returncode, said = 1, "the global model is not finite"
    if done.returncode and "not finite" in said:
        lost.write_text(said + "\n")
        raise DivergedError(said)
    if done.returncode:
        raise click.ClickException(f"{point.name}: its job ended: {said} ({job / 'job.log'})")
    return True


def global_state(folder: Path) -> dict[str, Tensor]:
    """The model that the server has after the last round."""
    return load_file(folder / "job" / "global.safetensors")


def silo_locks(point: Point, setting: Setting, folder: Path) -> tuple[Lock, OwnLock]:
    """A point's lock, and copies of a model under the lock that a silo has trained.

    Where silos seal what they send, the simulation's model is what they open, and has no lock.
    """
    defense = keylock(point.lock or {})
    plain = first_model(setting.net, setting.seed)
    if defense.seals:
        return defense, lambda state, _silo, _round: _loaded(plain, state)
    return defense, own_locks(plain, defense, folder / "job" / defense.config.vault)


def _loaded(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    copy = deepcopy(model)
    copy.load_state_dict(state)
    return copy
