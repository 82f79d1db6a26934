"""Fixtures that run real jobs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from job_harness import (
    LIMIT,
    Job,
    RunJob,
    await_port,
    config,
    free_ports,
    run_line,
    variables,
    write_job,
)

from fedml_keylock.host.launch import command


@pytest.fixture(scope="session")
def run_job(tmp_path_factory: pytest.TempPathFactory) -> RunJob:
    def run(
        case: str = "",
        *,
        settings: Mapping[str, Any] | None,
        plugin: bool = True,
        ranks: int = 3,
        env: Mapping[str, str] | None = None,
        **changes: Any,
    ) -> Job:
        if ranks not in (1, 3):
            numbers = ("worker_num", "client_num_in_total", "client_num_per_round")
            changes = dict.fromkeys(numbers, ranks - 1) | changes
        folder = tmp_path_factory.mktemp(case or "job")
        write_job(folder, settings, **changes)
        line = command(ranks, ["job_main.py", "--cf", "fedml_config.yaml"])
        if ranks == 1:  # in one process, without MPI
            line = line[line.index(sys.executable) :]
        if not plugin:
            line = [part for part in line if part not in ("-m", "fedml_keylock")]
        return run_line(line, folder, ranks=ranks, case=case, env=env)

    os.environ.pop("FEDML_KEYLOCK_RANKS", None)
    return run


@pytest.fixture(scope="session")
def run_script(tmp_path_factory: pytest.TempPathFactory) -> RunJob:
    """Run a script as `run_job` does, in a folder of its own with the files that it needs."""

    def run(
        case: str,
        script: str,
        files: Iterable[Path],
        settings: Mapping[str, Any] | None,
        where: str = "fedml_config.yaml",
        *,
        ranks: int = 3,
        env: Mapping[str, str] | None = None,
        **changes: Any,
    ) -> Job:
        folder = tmp_path_factory.mktemp(case)
        for path in files:
            shutil.copy(path, folder)
        (folder / where).parent.mkdir(exist_ok=True)
        (folder / where).write_text(yaml.safe_dump(config(settings, **changes)))
        line = command(ranks, [script, "--cf", where])
        if ranks == 1:  # in one process, without MPI
            line = line[line.index(sys.executable) :]
        return run_line(line, folder, ranks=ranks, case=case, env=env)

    return run


@pytest.fixture
def run_grpc(tmp_path: Path) -> Iterator[RunJob]:
    """A server and two silos as processes of their own that talk by gRPC on this machine."""
    started: list[subprocess.Popen[bytes]] = []

    def run(case: str = "", *, settings: Mapping[str, Any] | None, **changes: Any) -> Job:
        ports = free_ports(3)
        rows = [f"{rank},{rank},127.0.0.1,{port}" for rank, port in enumerate(ports)]
        head = "eid,rank,grpc_server_ip,grpc_server_port"
        (tmp_path / "grpc.csv").write_text("\n".join([head, *rows, ""]))
        write_job(tmp_path, settings, backend="GRPC", grpc_ipconfig_path="grpc.csv", **changes)
        env = variables(1, case)
        del env["FEDML_KEYLOCK_RANKS"]
        began = time.monotonic()
        for rank in range(3):
            role = ["--rank", str(rank), "--role", "client" if rank else "server"]
            script = ["job_main.py", "--cf", "fedml_config.yaml", "--run_id", "1", *role]
            if rank == 1:
                await_port(ports[0])  # FedML's silos give up where no server listens yet
            with (tmp_path / f"log-{rank}").open("wb") as log:
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "fedml_keylock", *script],
                        cwd=tmp_path,
                        env=env,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        # over gRPC nothing ends the others when one process ends
        ending = started[2:] if case in ("nan", "more") else started
        ends = [process.wait(LIMIT) for process in ending]
        output = "".join((tmp_path / f"log-{rank}").read_text() for rank in range(3))
        return Job(tmp_path, max(ends), output, time.monotonic() - began)

    yield run
    for process in started:
        process.kill()
        process.wait()
