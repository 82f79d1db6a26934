"""Real jobs: FedML over MPI ranks, in a folder of their own, under a time limit."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedml_keylock.host.launch import environment

HERE = Path(__file__).parent
LIMIT = 120
"""Seconds; a job of these takes about 5 on two cores. A hang is a failure."""


class _Message:
    """Stands for FedML's, whose import takes seconds."""

    msg_params: dict[str, Any]


class _Reader(pickle.Unpickler):
    """Reads a message as its receiver does, without FedML."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))

    def find_class(self, module: str, name: str) -> Any:
        return _Message if module.startswith("fedml.") else super().find_class(module, name)


@dataclass(frozen=True)
class Job:
    """How a job ended."""

    folder: Path
    status: int
    output: str
    seconds: float

    @property
    def ours(self) -> list[str]:
        """The lines that fedml-keylock said."""
        return [x for x in self.output.splitlines() if x.startswith("fedml-keylock: ")]

    def messages(self, rank: int) -> list[dict[str, Any]]:
        """What the rank handed to MPI: bytes, message type, whether a model was in it."""
        return [
            json.loads(x) for x in (self.folder / f"wire-{rank}.jsonl").read_text().splitlines()
        ]

    def decoded(self, rank: int) -> list[dict[str, Any]]:
        """The entries of each message of a rank, read back as the receiver does."""
        wire = (self.folder / f"wire-{rank}.bin").read_bytes()
        found, at = [], 0
        for message in self.messages(rank):
            found.append(_Reader(wire[at : at + message["bytes"]]).load().msg_params)
            at += message["bytes"]
        return found

    def wire(self) -> bytes:
        """Every byte that any rank handed to MPI."""
        return b"".join(path.read_bytes() for path in sorted(self.folder.glob("wire-*.bin")))


RunJob = Callable[..., Job]


def config(defense: Mapping[str, Any] | None, **changes: Any) -> dict[str, Any]:
    """A job's YAML; `changes` replace keys in whichever section has them."""
    sections: dict[str, dict[str, Any]] = {
        "common_args": {
            "training_type": "cross_silo",
            "scenario": "horizontal",
            "random_seed": 0,
            "using_mlops": False,
        },
        "data_args": {"dataset": "small"},
        "train_args": {
            "federated_optimizer": "FedAvg",
            "client_id_list": "[]",
            "client_num_in_total": 2,
            "client_num_per_round": 2,
            "comm_round": 2,
            "epochs": 1,
            "batch_size": 16,
            "client_optimizer": "sgd",
            "learning_rate": 0.1,
        },
        "validation_args": {"frequency_of_the_test": 1},
        "device_args": {"worker_num": 2, "using_gpu": False},
        "comm_args": {"backend": "MPI"},
        "tracking_args": {"enable_tracking": False, "enable_wandb": False},
        "defense_args": {
            "enable_defense": defense is not None,
            "defense_type": "keylock",
            "keylock": dict(defense or {}),
        },
        "attack_args": {"enable_attack": False, "gradient_inversion": {}},
    }
    for key, value in changes.items():
        section = next((s for s in sections.values() if key in s), sections["common_args"])
        section[key] = value
    return sections


def write_job(folder: Path, settings: Mapping[str, Any] | None, **changes: Any) -> None:
    """A folder with the job's script, the recorder and the YAML."""
    for name in ("job_main.py", "job_parts.py", "job_recorder.py"):
        shutil.copy(HERE / name, folder)
    (folder / "fedml_config.yaml").write_text(yaml.safe_dump(config(settings, **changes)))


def variables(ranks: int, case: str) -> dict[str, str]:
    """The environment of a job's processes."""
    return environment(ranks) | {"JOB_CASE": case, "PYTHONWARNINGS": "ignore"}


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def await_port(port: int) -> None:
    """Wait until a process listens."""
    limit = time.monotonic() + LIMIT
    while time.monotonic() < limit:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.1)
    raise TimeoutError(f"nobody listens on port {port}")


def run_line(
    line: Sequence[str],
    folder: Path,
    *,
    ranks: int = 3,
    case: str = "",
    env: Mapping[str, str] | None = None,
    limit: float = LIMIT,
) -> Job:
    """Run a job's command in its folder, and keep what it says there."""
    began = time.monotonic()
    done = subprocess.run(
        line,
        cwd=folder,
        env=variables(ranks, case) | dict(env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=limit,
        check=False,
    )
    (folder / "job.log").write_text(done.stdout)
    return Job(folder, done.returncode, done.stdout, time.monotonic() - began)
