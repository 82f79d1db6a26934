"""One table: each attack against each lock, on what real jobs sent.

    python run.py --data ROOT --output levels

ROOT is where torchvision keeps MNIST or FashionMNIST. Each job trains one step a round over MPI. A
server attacks what it captured; under the sealed lock also the colluding silo 0, who takes its own
update out of the average that it is given, and attacks the sum of the k others. Half an hour
on two busy cores. A job or a cell that is there is not made again.
"""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from data import load_data  # noqa: E402
from net import MODELS  # noqa: E402
from table import COLUMNS, ROWS, Column, Row, table  # noqa: E402

from fedml_keylock.builtin import keylock  # noqa: E402
from fedml_keylock.errors import AttackError, HostError, KeyLockError  # noqa: E402
from fedml_keylock.evaluation.audit.score import matched  # noqa: E402
from fedml_keylock.evaluation.audit.work import Result  # noqa: E402
from fedml_keylock.evaluation.capture import Capture  # noqa: E402
from fedml_keylock.evaluation.metrics import psnr, ssim  # noqa: E402
from fedml_keylock.evaluation.trials import attack_updates, knowledge_of, trials  # noqa: E402
from fedml_keylock.host.launch import follow  # noqa: E402
from fedml_keylock.inversion.engine.observe import observe  # noqa: E402
from fedml_keylock.inversion.labels import ILRG, find_labels  # noqa: E402
from fedml_keylock.plugins import attack_of  # noqa: E402
from fedml_keylock.types import ClientUpdate  # noqa: E402

RECOGNISED = 0.6
"""SSIM from which an image counts as recognised."""


def settings_of(row: Row, column: Column, data: Path, dataset: str) -> dict[str, Any]:
    """A job's YAML."""
    sections = yaml.safe_load((HERE / "fedml_config.yaml").read_text())
    sections["data_args"] |= {"dataset": dataset, "data_cache_dir": str(data.resolve())}
    sections["model_args"]["model"] = row.net
    for name in ("client_num_in_total", "client_num_per_round"):
        sections["train_args"][name] = column.silos
    sections["device_args"]["worker_num"] = column.silos
    sections["defense_args"] |= {
        "enable_defense": column.lock is not None,
        "keylock": column.lock or {},
    }
    if row.active:
        sections["attack_args"]["gradient_inversion"] |= {
            "active": row.attack,
            "attacks": {row.attack: row.fields},
            "rounds": [0],
        }
    return sections


def run_job(folder: Path, sections: dict[str, Any]) -> str:
    """Run the job, unless that was done; the reason why it refused, or nothing."""
    ended = folder / "ended.json"
    if not ended.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "fedml_config.yaml").write_text(yaml.safe_dump(sections))
        script = [str(HERE / "main.py"), "--cf", "fedml_config.yaml"]
        ranks, refused = sections["device_args"]["worker_num"] + 1, ""
        with (folder / "job.log").open("w") as log:
            try:
                follow(ranks, script, folder, log, lambda: None)
            except HostError:
                log.flush()
                said = (folder / "job.log").read_text().splitlines()
                ours = [line for line in said if line.startswith("fedml-keylock: ")]
                refused = ours[-1].removeprefix("fedml-keylock: ") if ours else ""
                if not refused or "ATTACKS" in refused:
                    raise
        ended.write_text(json.dumps(refused))
    return str(json.loads(ended.read_text()))


@cache
def loaders_of(folder: Path) -> tuple[Any, ...]:
    """FedML's dataset tuple, as in the job."""
    sections = yaml.safe_load((folder / "fedml_config.yaml").read_text()).values()
    args = SimpleNamespace(**{key: value for section in sections for key, value in section.items()})
    return load_data(args)


def seen(folder: Path, row: Row, column: Column) -> tuple[list[ClientUpdate], list[list[int]]]:
    """What is attacked, and which silos' data are behind each update."""
    if not column.colluding:
        updates = Capture.open(folder / "leakage" / "capture").updates(row.round)
        if row.victim is not None:
            updates = [update for update in updates if update.silo == row.victim]
        return updates, [[update.silo] for update in updates]
    given, average, own = (
        load_file(folder / "silo-0" / f"{name}.safetensors")
        for name in (f"given-{row.round}", f"given-{row.round + 1}", f"sent-{row.round}")
    )
    silos = column.silos
    others = {n: (average[n].double() * silos - own[n]) / (silos - 1) for n in given}
    after = {name: others[name].to(tensor) for name, tensor in given.items()}
    rate = float(Capture.open(folder / "leakage" / "capture").meta["learning_rate"])
    return [ClientUpdate(given, after, rate, round=row.round)], [[*range(1, silos)]]


def truth_of(folder: Path, row: Row, behind: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Images ``(u, n, c, h, w)`` and labels ``(u, n)`` behind each update."""
    silos = loaders_of(folder)[5]
    batches = [[silos[silo].batch(row.round) for silo in some] for some in behind]
    images = torch.stack([torch.cat([batch[0] for batch in some]) for some in batches])
    labels = torch.stack([torch.cat([batch[1] for batch in some]) for some in batches])
    return images, labels


def scored(images: Tensor, truth: Tensor, lost: Tensor) -> dict[str, Any]:
    """How many of images ``(u, n, c, h, w)`` are recognised, and how well; lost ones are not."""
    true, found = (
        truth.flatten(0, 1),
        matched(Result(images, lost, lost, lost[None]), truth).flatten(0, 1),
    )
    lost = lost[:, None].expand(truth.shape[:2]).flatten()
    alike = ssim(found, true).masked_fill(lost, 0)
    return {
        "images": len(true),
        "recognised": int((alike >= RECOGNISED).sum()),
        "ssim": float(alike.mean()),
        "psnr": [round(float(x), 2) for x in psnr(found, true).masked_fill(lost, 0)],
    }


def labels_scored(found: Tensor, labels: Tensor) -> dict[str, Any]:
    """How many labels ``(u, n)`` were found, whatever their order."""
    pairs = zip(found.tolist(), labels.tolist(), strict=True)
    right = sum(min(a.count(x), b.count(x)) for a, b in pairs for x in set(b))
    return {"images": labels.numel(), "labels": right}


def attack(folder: Path, row: Row, column: Column) -> dict[str, Any]:
    """One cell."""
    updates, behind = seen(folder, row, column)
    images, labels = truth_of(folder, row, behind)
    if row.most is not None and images.shape[1] > row.most:
        return {"not run": f"more than {row.most} images"}
    model: nn.Module = MODELS[row.net]()
    defense = None if column.lock is None or column.colluding else keylock(column.lock)
    attacker_model = defense.attacker_model(model) if defense else None
    made = attack_of(row.preset, row.fields)
    # the strongest that needs no more than the job: who knows the lock, if the attack can use it
    level = trials({row.attack: made}, ("adaptive", "oblivious"), defended=defense is not None)[0][
        1
    ]
    knowledge = knowledge_of(
        level,
        attacker_model=attacker_model,
        input_shape=tuple(images.shape[2:]),
        classes=10,
        batch=images.shape[1],
    )
    if row.labels:
        read = [attacker_model.read(u) for u in updates] if attacker_model else updates
        observed = observe(read, attacker_model.model if attacker_model else model, knowledge)
        found = find_labels(
            observed.model,
            observed.targets,
            knowledge,
            recovery=ILRG,
            started=observed.started,
        )
        return labels_scored(found, labels) | {"level": level}
    result = attack_updates(
        made, updates, model, knowledge=knowledge, attacker_model=attacker_model, seed=0
    )
    lost = ~result.cost.isfinite()
    if lost.all():
        return {"no result": "the search found nothing", "level": level}
    cost = [float(f"{x:.3g}") for x in result.cost.tolist()]
    return scored(result.images, images, lost) | {"cost": cost, "level": level}


def control(folder: Path, row: Row, column: Column) -> dict[str, Any]:
    """The same without any gradient: the mean image of the true class, or public labels."""
    silos = range(column.silos) if row.victim is None else [row.victim]
    behind = [[*range(1, column.silos)]] if column.colluding else [[silo] for silo in silos]
    images, labels = truth_of(folder, row, behind)
    public, of = loaders_of(folder)[3].dataset.tensors
    if row.labels:
        return labels_scored(of[: labels.numel()].view(labels.shape), labels)
    means = torch.stack([public[of == label].mean(0) for label in range(10)])
    return scored(means[labels], images, torch.zeros(len(images), dtype=torch.bool))


def cells(rows: list[Row], output: Path, data: Path, dataset: str) -> Iterator[tuple[str, int]]:
    """Make every cell that is not there; each one's name and seconds."""
    for row in rows:
        for column in COLUMNS:
            path = output / "cells" / f"{row.name}--{column.name}.json"
            if path.exists():
                continue
            began = time.monotonic()
            folder = output / "jobs" / f"{row.job}-{column.job}"
            refused = run_job(folder, settings_of(row, column, data, dataset))
            if refused:
                cell: dict[str, Any] = {"refused": refused, "by": "job"}
            else:
                try:
                    cell = attack(folder, row, column)
                except AttackError as error:
                    cell = {"refused": str(error), "by": "attack"}
            cell["control"] = control(folder, row, column)
            cell["seconds"] = round(time.monotonic() - began)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(cell, indent=1))
            yield f"{row.name}, {column.title}", cell["seconds"]


@click.command(help=__doc__)
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--dataset", type=click.Choice(["MNIST", "FashionMNIST"]), default="MNIST")
@click.option("--output", type=click.Path(path_type=Path), default=Path("levels"))
@click.option("--attacks", default="", help="Names, with commas; all without it.")
def main(data: Path, dataset: str, output: Path, attacks: str) -> None:
    torch.set_num_threads(1)
    rows = [row for row in ROWS if not attacks or row.attack in attacks.split(",")]
    try:
        for name, seconds in cells(rows, output, data, dataset):
            click.echo(f"{name} ({seconds} s)", err=True)
    except KeyLockError as error:
        raise click.ClickException(str(error)) from None
    paths = sorted((output / "cells").iterdir())
    made = {path.stem: json.loads(path.read_text()) for path in paths}
    (output / "table.json").write_text(json.dumps({"dataset": dataset, "cells": made}, indent=1))
    (output / "table.md").write_text(table(made, dataset))
    click.echo(f"table: {output / 'table.md'}")


if __name__ == "__main__":
    main()
