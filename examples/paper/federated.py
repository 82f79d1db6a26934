"""A federated cell: FedML's cross-silo pipeline over MPI, a server and three silos.

The job (`main.py`, `trainer.py`) writes into a folder of its own what is read here: accuracies as
they are measured, and the global model, with which it goes on when it was interrupted. The silos'
locks are in their vaults, which the plugin keeps; a silo may have trained the interrupted round
already and then trains it twice.
"""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from cells import KEYLOCK, Cell, Recipe
from safetensors import safe_open

from fedml_keylock.errors import HostError
from fedml_keylock.host.launch import follow

HERE = Path(__file__).resolve().parent
CHECKPOINT, START = "global.safetensors", "start.safetensors"


def sections(
    cell: Cell, recipe: Recipe, seed: int, *, first: int, test_every: int, data: dict[str, Any]
) -> dict[str, Any]:
    """The job's YAML, from a round on."""
    return {
        "common_args": {
            "training_type": "cross_silo",
            "scenario": "horizontal",
            "random_seed": seed,
            "using_mlops": False,
        },
        "data_args": {
            "dataset": cell.data,
            **data,
            "image_size": cell.size,
            "train_images": recipe.train_images,
            "test_images": recipe.test_images,
        },
        "model_args": {
            "model": cell.model,
            "extra_convolution": cell.locked,
            "start_model": START if first else "",
        },
        "train_args": {
            "federated_optimizer": "FedAvg",
            "client_id_list": "[]",
            "client_num_in_total": recipe.silos,
            "client_num_per_round": recipe.silos,
            "comm_round": recipe.rounds - first,
            "first_round": first,
            "all_rounds": recipe.rounds,
            "epochs": recipe.epochs,
            "batch_size": recipe.batch_size,
            "client_optimizer": "sgd",
            "learning_rate": recipe.learning_rate,
            "momentum": recipe.momentum,
            "weight_decay": recipe.weight_decay,
        },
        "validation_args": {"frequency_of_the_test": test_every},
        "device_args": {"worker_num": recipe.silos, "using_gpu": False},
        "comm_args": {"backend": "MPI"},
        "tracking_args": {"enable_tracking": False, "enable_wandb": False},
        "defense_args": {
            "enable_defense": cell.locked,
            "defense_type": "keylock",
            "keylock": dict(KEYLOCK),
        },
    }


def use_gpus(config: dict[str, Any], folder: Path, ranks: int) -> str:
    """Share the ranks out over this machine's GPUs, as FedML has it.

    Returns:
        The kind of device that the job is to run on.

    """
    gpus = torch.cuda.device_count()
    if not gpus:
        return "cpu"
    shared = [len(range(gpu, ranks, gpus)) for gpu in range(gpus)]
    (folder / "gpus.yaml").write_text(yaml.safe_dump({"paper": {"here": shared}}))
    config["device_args"] |= {
        "using_gpu": True,
        "gpu_mapping_file": "gpus.yaml",
        "gpu_mapping_key": "paper",
    }
    return "cuda"


def train(
    cell: Cell,
    recipe: Recipe,
    seed: int,
    folder: Path,
    progress: Callable[[int], Any],
    *,
    test_every: int,
    data: dict[str, Any],
) -> dict[str, Any]:
    """Run a cell's job, or go on with it.

    Args:
        cell: a federated one.
        recipe: how.
        seed: of the initial weights, the silos' parts, the order of pictures and their crops.
        folder: of the job.
        progress: is told how many rounds are done.
        test_every: so many rounds the server and the silos test.
        data: where the job finds its pictures: `data_cache_dir` and `stand_in`.

    Returns:
        Accuracy after rounds, under "server" and, with the lock, "own lock" (the mean over silos)
        and each silo's; seconds; the device.

    Raises:
        HostError: the job failed.

    """
    first = rounds_done(folder)
    if not first:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    else:
        shutil.copy(folder / CHECKPOINT, folder / START)
    config = sections(cell, recipe, seed, first=first, test_every=test_every, data=data)
    ranks = recipe.silos + 1
    device = use_gpus(config, folder, ranks)
    (folder / "fedml_config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    progress(first)
    began = time.monotonic()
    run(folder, ranks, first, progress)
    times = seconds(folder)
    times[str(first)] = time.monotonic() - began
    for left in (CHECKPOINT, START):
        (folder / left).unlink(missing_ok=True)
    return {
        "accuracy": accuracies(folder, recipe.silos if cell.locked else 0, recipe.rounds),
        "seconds": round(sum(times.values()), 1),
        "device": device,
    }


def run(folder: Path, ranks: int, first: int, progress: Callable[[int], Any]) -> None:
    """Run the job in its folder, with the plugin active."""
    began, done = time.monotonic(), first

    def round_over() -> None:
        nonlocal done
        done += 1
        progress(done)
        spent = seconds(folder) | {str(first): time.monotonic() - began}
        (folder / "seconds.json").write_text(json.dumps(spent))

    script = [str(HERE / "main.py"), "--cf", "fedml_config.yaml"]
    with (folder / "job.log").open("a") as log:
        follow(ranks, script, folder, log, round_over)


def seconds(folder: Path) -> dict[str, float]:
    """The round that each start of the job began with, to how long it took."""
    path = folder / "seconds.json"
    return json.loads(path.read_text()) if path.exists() else {}


def rounds_done(folder: Path) -> int:
    """After how many rounds the global model was kept last."""
    path = folder / CHECKPOINT
    if not path.exists():
        return 0
    with safe_open(str(path), "pt") as file:
        return int(file.metadata()["rounds"])


def accuracies(folder: Path, silos: int, rounds: int) -> dict[str, list[list[float]]]:
    """Role to `[round, accuracy]`, the last of them after the last round.

    Raises:
        HostError: one was not measured then.

    """
    who = ["server", *(f"silo-{silo}" for silo in range(silos))]
    found: dict[str, dict[int, float]] = {}
    for name in who:
        path = folder / f"accuracy-{name}.jsonl"
        lines = [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
        found[name] = {line["round"]: line["accuracy"] for line in lines}
        if rounds not in found[name]:
            raise HostError(f"{path}: nothing was measured after the last round; see job.log")
    if silos:
        parts = [found[name] for name in who[1:]]
        both = [index for index in parts[0] if all(index in part for part in parts)]
        found["own lock"] = {index: sum(part[index] for part in parts) / silos for index in both}
    return {role: [list(x) for x in sorted(points.items())] for role, points in found.items()}
