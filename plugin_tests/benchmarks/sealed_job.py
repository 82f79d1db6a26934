"""What sealing adds to a FedML job over MPI with a large net: round time, memory, bytes.

python plugin_tests/benchmarks/sealed_job.py --help

A server and two silos train a net of 34 million parameters, by turns as plain FedML and sealed. It
prints ratios of medians. Other work on the machine disturbs round times; the CPU time of all ranks
is beside them.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

HERE = Path(__file__)
SILOS = 2
SIZES = [16, 4096, 4096, 4096, 10]
ASKED = {
    "round time": 1.6,
    "peak memory of a silo": 1.3,
    "peak memory of the server": 1.3,
    "bytes sent": 1.002,
}
SETTLED = 2
"""Rounds that are not counted: their memory is touched for the first time."""


def config(rounds: int, *, sealed: bool) -> dict[str, Any]:
    """A job's YAML."""
    return {
        "common_args": {
            "training_type": "cross_silo",
            "scenario": "horizontal",
            "random_seed": 0,
            "using_mlops": False,
        },
        "data_args": {"dataset": "drawn"},
        "model_args": {"model": "linear"},
        "train_args": {
            "federated_optimizer": "FedAvg",
            "client_id_list": "[]",
            "client_num_in_total": SILOS,
            "client_num_per_round": SILOS,
            "comm_round": rounds,
            "epochs": 1,
            "batch_size": 32,
            "client_optimizer": "sgd",
            "learning_rate": 0.01,
        },
        "validation_args": {"frequency_of_the_test": 10_000},
        "device_args": {"worker_num": SILOS, "using_gpu": False},
        "comm_args": {"backend": "MPI"},
        "tracking_args": {"enable_tracking": False, "enable_wandb": False},
        "defense_args": {
            "enable_defense": sealed,
            "defense_type": "keylock",
            # plain FedML's silos test nothing
            "keylock": {"own_accuracy": False},
        },
    }


# --- in the job


class Watch:
    """What one rank sees of the job: ends of rounds, bytes of models that it sends."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.sent: list[int] = []

    def start(self) -> None:
        """Have FedML's own functions watched."""
        from fedml.cross_silo.server.fedml_aggregator import FedMLAggregator
        from mpi4py import MPI

        MPI.pickle.__init__(self._counted, pickle.loads)  # type: ignore[misc]  # what it is for
        FedMLAggregator.aggregate = self._ending(FedMLAggregator.aggregate)

    def write(self, rank: int) -> None:
        """Leave what was seen, and the most memory that was used, in bytes."""
        status = Path("/proc/self/status").read_text()
        # not getrusage: its peak begins with that of the process that started this one
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        seen = {"peak": 1024 * int(found[1]), "cpu": time.process_time(), **vars(self)}
        Path(f"rank-{rank}.json").write_text(json.dumps(seen))

    def _counted(self, message: Any, *how: Any) -> bytes:
        data = pickle.dumps(message, *how)
        if "model_params" in message.get_params():
            self.sent.append(len(data))
        return data

    def _ending(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **more: Any) -> Any:
            result = function(*args, **more)
            self.ends.append(time.monotonic())
            return result

        return run


def job() -> None:
    """One rank of the job."""
    import fedml
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    watch, args = Watch(), fedml.init(check_env=False)
    watch.start()
    layers = [nn.Linear(i, o) for i, o in pairwise(SIZES)]
    parts = [part for layer in layers for part in (layer, nn.ReLU())][:-1]
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, SIZES[0], generator=draw)
    labels = inputs[:, :10].argmax(1)
    loader = DataLoader(TensorDataset(inputs, labels), args.batch_size, shuffle=True)
    loaders = dict.fromkeys(range(SILOS), loader)
    numbers = dict.fromkeys(range(SILOS), len(inputs))
    data = SILOS * len(inputs), len(inputs), None, loader, numbers, loaders, loaders, 10
    device = fedml.device.get_device(args)
    fedml.FedMLRunner(args, device, data, nn.Sequential(*parts)).run()
    watch.write(int(args.rank))
    sys.stdout.flush()


# --- around the jobs


def run(folder: Path, rounds: int, *, sealed: bool) -> dict[str, float]:
    """One job; its figures, in seconds and bytes."""
    import yaml

    from fedml_keylock.host.launch import command, environment

    folder.mkdir()
    shutil.copy(HERE, folder)
    (folder / "fedml_config.yaml").write_text(yaml.safe_dump(config(rounds, sealed=sealed)))
    # plain FedML by mpi4py's own runner, which ends all ranks when one fails, as ours does
    line = command(SILOS + 1, [HERE.name, "--cf", "fedml_config.yaml"])
    if not sealed:
        line[line.index("fedml_keylock")] = "mpi4py"
    with (folder / "job.log").open("w") as log:
        done = subprocess.run(
            line,
            cwd=folder,
            env=environment(SILOS + 1) | {"PYTHONWARNINGS": "ignore"},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    said = (folder / "job.log").read_text()
    if done.returncode or ("agreed on secrets" in said) != sealed:
        raise SystemExit(f"the job failed:\n{said[-2000:]}")
    server, *silos = (json.loads((folder / f"rank-{r}.json").read_text()) for r in range(SILOS + 1))
    ends = server["ends"]
    assert len(ends) == rounds
    between = [later - end for end, later in pairwise(ends)]
    return {
        "round time": statistics.median(between[SETTLED - 1 :]),
        "CPU time of all ranks": sum(rank["cpu"] for rank in (server, *silos)),
        "peak memory of a silo": max(silo["peak"] for silo in silos),
        "peak memory of the server": server["peak"],
        "bytes sent": statistics.mean(size for silo in silos for size in silo["sent"]),
    }


def compare(rounds: int, repeats: int) -> None:
    """Run pairs of jobs, and print the ratio of each figure."""
    found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(repeats):
            # the other way round every other time: a machine that slows down favours no side
            for sealed in (False, True)[:: -1 if turn % 2 else 1]:
                name = f"{'sealed' if sealed else 'plain'}-{turn}"
                found[sealed].append(run(Path(folder) / name, rounds, sealed=sealed))
    for what in found[True][0]:
        ratios = [a[what] / b[what] for a, b in zip(found[True], found[False], strict=True)]
        ours, theirs = (statistics.median(one[what] for one in found[s]) for s in (True, False))
        unit, scale = ("s", 1.0) if "time" in what else ("MB", 1e6)
        digits = 4 if what == "bytes sent" else 2
        spread = ", ".join(f"{ratio:.{digits}f}" for ratio in ratios)
        asked = f"; asked: {ASKED[what]:g}" if what in ASKED else ""
        sys.stdout.write(
            f"{what}, sealed over plain: {statistics.median(ratios):.{digits}f} ({spread}; "
            f"{ours / scale:.4g} and {theirs / scale:.4g} {unit}){asked}\n"
        )


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="of each job (10)")
    parser.add_argument("--repeat", type=int, default=2, help="pairs of jobs (2)")
    asked = parser.parse_args()
    if asked.rounds < SETTLED + 2:
        parser.error(f"--rounds must be {SETTLED + 2} or more")
    compare(asked.rounds, asked.repeat)


if __name__ == "__main__":
    if "--cf" in sys.argv:
        job()
    else:
        main()
