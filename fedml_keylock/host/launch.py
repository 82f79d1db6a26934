"""Starts MPI jobs by this environment's own MPI runtime."""

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
"""Seconds between two reads of a job's output."""
RANKS = "FEDML_KEYLOCK_RANKS"
"""Environment variable with the number of ranks that were started."""


def find_mpiexec() -> Path:
    """Find the `mpiexec` beside this Python, or else on PATH.

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
    """The command that runs a job's script on this many ranks.

    Example:
        >>> command(4, ["main.py", "--cf", "fedml_config.yaml"])[-4:]
        ['fedml_keylock', 'main.py', '--cf', 'fedml_config.yaml']

    """
    return [str(find_mpiexec()), "-n", str(ranks), sys.executable, "-m", "fedml_keylock", *script]


def environment(ranks: int, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a job: one thread per rank, unless set otherwise.

    More threads would compete for the cores that ranks share.

    Example:
        >>> environment(4, {})["OMP_NUM_THREADS"]
        '1'

    """
    return {"OMP_NUM_THREADS": "1", **(os.environ if base is None else base), RANKS: str(ranks)}


def check_world() -> None:
    """Check that MPI sees as many ranks as were started.

    An mpiexec of another MPI than mpi4py's starts processes that each see a world of one rank. Such
    a job would end without an error and without any work.

    Raises:
        HostError: the numbers differ.

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

    The job writes the file itself, so that it is complete even if this process is killed.

    Args:
        ranks: number of ranks.
        script: the script and its arguments.
        log: an empty file.
        see: called several times a second with the new lines, if any.

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
        except BaseException:  # Ctrl-C too, as in `run`
            job.kill()
            raise
    return status


def follow(
    ranks: int, script: Sequence[str], folder: Path, log: TextIO, round_over: Callable[[], Any]
) -> None:
    """Run a job in a folder, and report each trained round.

    Args:
        ranks: number of ranks.
        script: the script and its arguments.
        folder: working folder of the job.
        log: file for the job's output.
        round_over: called after each round.

    Raises:
        HostError: the job failed; has this plugin's last line about it.

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
        except BaseException:  # Ctrl-C too: the job must not run on alone
            job.terminate()
            raise
    if job.returncode:
        raise HostError(f"the job failed: {ours} ({log.name})")
