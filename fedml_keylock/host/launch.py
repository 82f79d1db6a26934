"""Start an MPI job with the MPI runtime that belongs to this environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from ..errors import HostError
from ..mpi import misfit
from .progress import LISTENING

__all__ = [
    "RANKS",
    "check_world",
    "command",
    "environment",
    "find_mpiexec",
    "follow",
    "run",
    "run_logged",
]

LOOK_EVERY = 0.2
"""Seconds between two looks at what a job has printed."""
RANKS = "FEDML_KEYLOCK_RANKS"
"""Environment variable with how many ranks a job was started with."""


def find_mpiexec() -> Path:
    """The `mpiexec` beside this Python, or else the one on PATH.

    Raises:
        HostError: there is none.

    """
    beside = Path(sys.executable).parent / "mpiexec"
    if beside.exists():
        return beside
    found = shutil.which("mpiexec")
    if found is None:
        raise HostError(
            "no mpiexec beside this Python or on PATH; install an MPI runtime: "
            "pip install 'fedml-keylock[mpich]', or your cluster's own"
        )
    return Path(found)


def command(ranks: int, script: Sequence[str]) -> list[str]:
    """The command that runs a job's script on so many ranks.

    Example:
        >>> command(4, ["main.py", "--cf", "fedml_config.yaml"])[-4:]
        ['fedml_keylock', 'main.py', '--cf', 'fedml_config.yaml']

    """
    return [str(find_mpiexec()), "-n", str(ranks), sys.executable, "-m", "fedml_keylock", *script]


def environment(ranks: int, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a job: one thread a rank, unless told otherwise.

    Ranks that share a machine would fight over its cores with more.

    Example:
        >>> environment(4, {})["OMP_NUM_THREADS"]
        '1'

    """
    return {"OMP_NUM_THREADS": "1", **(os.environ if base is None else base), RANKS: str(ranks)}


def check_world() -> None:
    """Check that MPI sees as many ranks as were started.

    An mpiexec of another MPI than mpi4py's starts that many processes which each believe to be
    alone, and a job of one rank would end well without having done anything.

    Raises:
        HostError: it does not.

    """
    wanted = os.environ.get(RANKS)
    if wanted is None:
        return
    from mpi4py import MPI

    size = MPI.COMM_WORLD.Get_size()
    if size != int(wanted):
        raise HostError(misfit(wanted, size, str(find_mpiexec()), MPI.Get_library_version()))


def run(ranks: int, script: Sequence[str]) -> int:
    """Run a job and wait for it.

    Returns:
        The job's exit status.

    """
    return subprocess.run(command(ranks, script), env=environment(ranks), check=False).returncode  # noqa: S603  # the user's own command


def run_logged(
    ranks: int, script: Sequence[str], log: Path, see: Callable[[list[str]], Any]
) -> int:
    """Run a job whose output goes to a file, and wait for it.

    The file is the job's own: it is whole even if this process is killed.

    Args:
        ranks: of the job.
        script: and its arguments.
        log: an empty file.
        see: is called some times a second with the lines that have come since, if any.

    Returns:
        The job's exit status.

    """
    told = environment(ranks) | {LISTENING: "1"}
    with (
        log.open("wb") as out,
        log.open(errors="replace") as come,
        subprocess.Popen(command(ranks, script), env=told, stdout=out, stderr=out) as job,  # noqa: S603  # as above
    ):
        status, rest = None, ""
        try:
            while status is None:
                with suppress(subprocess.TimeoutExpired):
                    status = job.wait(LOOK_EVERY)
                *lines, rest = (rest + come.read()).split("\n")
                see(lines if status is None else [*lines, rest])
        except BaseException:  # Ctrl-C among them, as of `run`
            job.kill()
            raise
    return status


def follow(
    ranks: int, script: Sequence[str], folder: Path, log: TextIO, round_over: Callable[[], Any]
) -> None:
    """Run a job in a folder, and say whenever it has trained a round.

    Args:
        ranks: of the job.
        script: and its arguments.
        folder: to run it in.
        log: gets all that the job prints.
        round_over: is called after each round.

    Raises:
        HostError: the job failed: with this plugin's last word on it.

    """
    ours = "its log says why"
    with subprocess.Popen(  # noqa: S603  # this environment's own mpiexec
        command(ranks, script),
        cwd=folder,
        env=environment(ranks),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as job:
        assert job.stdout is not None
        try:
            for line in job.stdout:
                log.write(line)
                if "-th round training===" in line:
                    round_over()
                if line.startswith("fedml-keylock: "):
                    ours = line.strip().removeprefix("fedml-keylock: ")
        except BaseException:  # Ctrl-C among them: the job is not to go on alone
            job.terminate()
            raise
    if job.returncode:
        raise HostError(f"the job failed: {ours} ({log.name})")
