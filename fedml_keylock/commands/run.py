"""`fedml-keylock run`: runs a job over MPI, and shows its progress and a summary."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from .console import Console
    from .job_file import JobFile

__all__ = ["run"]

LOGS = Path("logs")
"""Folder of logs, which FedML uses too."""


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "-n",
    "--ranks",
    type=click.IntRange(min=2),
    required=True,
    help="Server and silos: worker_num + 1.",
)
@click.option("--verbose", is_flag=True, help="Show all output of the ranks, and keep no log.")
@click.argument("script", nargs=-1, required=True, type=click.UNPROCESSED)
def run(ranks: int, verbose: bool, script: tuple[str, ...]) -> NoReturn:
    """Run an unmodified FedML job over MPI with the plugin active.

    \b
    Example: fedml-keylock run -n 4 main.py --cf fedml_config.yaml

    It checks the YAML first. Then it shows a progress line (round, accuracy if silos report it,
    time left), and each warning and error once. The closing summary says what was sent, what the
    server could read of it, and where the final model is. All output of the ranks goes to a file
    under logs/ that only you can read. The exit status is the job's.
    """  # noqa: D301  # click's mark for lines that are to stay as they are
    from .job_file import check_job_file

    if not Path(script[0]).exists():
        raise click.BadParameter(f"{script[0]}: no such script", param_hint="SCRIPT")
    named = _yaml_of(script)
    job = None if named is None else check_job_file(named, ranks=ranks)
    if verbose:
        from ..host.launch import run as run_plainly

        sys.exit(run_plainly(ranks, script))
    sys.exit(_run_shown(ranks, script, job))


def _yaml_of(script: tuple[str, ...]) -> Path | None:
    """The YAML that a job's arguments name, by FedML's rules."""
    found = None
    for option, value in pairwise([*script, ""]):
        name, equals, rest = option.partition("=")
        if name in ("--cf", "--yaml_config_file"):
            if not (rest if equals else value):
                raise click.BadParameter("it needs a YAML", param_hint=name)
            found = Path(rest if equals else value)
    return found


def _run_shown(ranks: int, script: tuple[str, ...], job: JobFile | None) -> int:
    from ..errors import HostError
    from ..host.launch import run_logged
    from .console import Console
    from .silo_logs import SiloLogs

    log = _new_log()
    keylock = None if job is None else job.keylock
    live = sys.stdout is not None and sys.stdout.isatty()  # None if stdout is closed
    defended = job is None or job.defense is not None
    silo_logs = SiloLogs(keylock.vault if keylock else None)
    console = Console(ranks, silo_logs, live=live, defended=defended)
    rounds = None if job is None else getattr(job.args, "comm_round", None)
    if type(rounds) is int:
        console.facts["rounds"] = rounds
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the job as Ctrl-C does
    try:
        click.echo(f"{ranks} ranks begin; all that they print goes to {log}")
        status = run_logged(ranks, script, log, console.see)
    except KeyboardInterrupt:
        console.clear()
        click.echo(f"stopped; log: {log}", err=True)
        raise
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader of the output has closed it, as head does
            raise
        named = error.filename or "stdout"
        raise HostError(f"{named}: {error.strerror}; the job is stopped; log: {log}") from None
    console.clear()
    if status:
        _tell_failure(console, status, log)
    else:
        from .summary import line, summary

        click.echo("\n".join([*summary(console, job), line("log", str(log))]))
    return status


def _new_log() -> Path:
    """Make an empty file for a job's output, which only its owner can read."""
    from ..errors import HostError

    try:
        LOGS.mkdir(exist_ok=True)
        descriptor, name = tempfile.mkstemp(".log", time.strftime("run-%Y%m%d-%H%M%S-"), LOGS)
    except OSError as error:
        raise HostError(
            f"{LOGS}: the job's log cannot be written here: {error.strerror}; use --verbose, which "
            "keeps none"
        ) from None
    os.close(descriptor)
    return LOGS / Path(name).name


def _tell_failure(console: Console, status: int, log: Path) -> None:
    """Report that a job failed, with its last lines if no rank named the reason."""
    if not console.failed:
        for line in console.last_lines():
            click.echo(line, err=True)
    full = "" if shutil.disk_usage(LOGS).free else f"the disk of {LOGS} is full; "
    click.echo(f"{full}the job failed with status {status}; log: {log}", err=True)
