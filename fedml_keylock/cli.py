"""The command line: `fedml-keylock demo | run | check | export | vault | doctor | ...`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import click

from . import __version__
from .commands.audit import audit
from .commands.check import check
from .commands.enable import disable, enable
from .commands.enrol import roster
from .commands.export import export
from .commands.fields import fields
from .commands.options import FOLDER
from .commands.privacy import privacy
from .commands.report import report
from .commands.run import run
from .commands.vault import vault
from .errors import KeyLockError

__all__ = ["main"]


_NOT_OURS = (r"urllib3 \(.*doesn't match a supported version", "pkg_resources is deprecated")
"""Warnings at the import of fedml and of what it needs, about which a user can do nothing."""


class _OneLine(click.Group):
    """A group whose errors of ours are one line and exit status 1, never a traceback."""

    def invoke(self, context: click.Context) -> Any:
        try:
            with warnings.catch_warnings():
                for message in _NOT_OURS:
                    warnings.filterwarnings("ignore", message)
                return super().invoke(context)
        except KeyLockError as error:
            click.echo(f"fedml-keylock: {error}", err=True)
            context.exit(1)


@click.group(cls=_OneLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fedml-keylock")
def main() -> None:
    """Stop gradient leakage in FedML cross-silo jobs, and show what was stopped.

    \b
    See it work:           fedml-keylock demo
    Run your own job:      fedml-keylock run -n 4 main.py --cf fedml_config.yaml
    Jobs launched for you: fedml-keylock enable
    Audit what leaks:      fedml-keylock audit --model main:Net --data FOLDER_OF_IMAGES
    What noise is worth:   fedml-keylock privacy fedml_config.yaml --model main:Net
    Check the environment: fedml-keylock doctor

    The job's YAML decides whether anything is defended:

    \b
      defense_args:
        enable_defense: true
        defense_type: keylock
    """  # noqa: D301  # click's mark for lines that are to stay as they are


@main.command()
@click.option(
    "--output",
    type=FOLDER,
    default=Path("keylock-demo"),
    show_default=True,
    help="Folder for the report, the jobs' logs and what was captured.",
)
@click.option("--quick", is_flag=True, help="Fewer rounds and pictures, no DLG: under 2 minutes.")
@click.option("--seed", type=int, default=0, show_default=True, help="FedML's random_seed.")
@click.option("--train-only", is_flag=True, help="Only the accuracies; no attacks.")
def demo(output: Path, quick: bool, seed: int, train_only: bool) -> None:
    """Train LeNet on MNIST over MPI three times, and attack each job.

    On real digits: plain FedAvg, the published lock (lock: paper), and the default one (lock:
    sealed). What the server got of each is attacked with DLG and inverting gradients by an
    attacker who ignores the lock, one who knows its kind, and one who has the silo's private state.
    Takes up to 5 minutes on two cores.
    """
    from .demo import run_demo

    run_demo(output, quick=quick, seed=seed, attack=not train_only, say=click.echo)


@main.command()
def plugins() -> None:
    """List every defense, attack and metric, and its plugin."""
    from .plugins import registered

    for one in registered():
        lines = (one.value.__doc__ or "").strip().splitlines()
        click.echo(f"{one.kind[:-1]:8} {one.name:22} {one.plugin:12} {lines[0] if lines else ''}")


@main.command()
def doctor() -> None:
    """Check this environment, and say what to do where it does not fit.

    Python, packages, the start-up file, the MPI runtime, every seam and every plugin.
    """
    from .doctor import examine

    failed = 0
    for found in examine():
        click.secho("ok  " if found.well else "FAIL", fg="green" if found.well else "red", nl=False)
        click.echo(f"  {found.name}: {found.found}")
        if not found.well:
            failed += 1
            click.echo(f"      -> {found.remedy}")
    if failed:
        raise KeyLockError(f"{failed} of the checks failed")
    click.echo("everything fits")


main.add_command(audit)
main.add_command(check)
main.add_command(disable)
main.add_command(enable)
main.add_command(export)
main.add_command(fields)
main.add_command(privacy)
main.add_command(report)
main.add_command(roster)
main.add_command(run)
main.add_command(vault)
