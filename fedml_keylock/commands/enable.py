"""`fedml-keylock enable` and `disable`: the start-up file in this environment's site-packages."""

from __future__ import annotations

from pathlib import Path

import click

from ..host.startup_file import StartUp

__all__ = ["disable", "enable"]


_into = click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    hidden=True,
    help="Another folder than this environment's site-packages.",
)


@click.command()
@_into
def enable(into: Path | None) -> None:
    """Activate the plugin wherever this environment imports fedml.

    For jobs that something else launches, where `python -m fedml_keylock` cannot be put in front:
    `fedml launch`, a scheduler, a notebook. The job's YAML still decides whether anything is
    defended.

    It writes fedml_keylock_startup.pth and .py into this environment's site-packages, which Python
    reads at its start (under 1 ms); not if started with -S. A FedML release that was not tested
    stops the jobs that ask for the defense, and no others.

    \b
    On every host of the job:  fedml-keylock enable
    See whether it is:         fedml-keylock doctor
    Take it back:              fedml-keylock disable
    """  # noqa: D301  # click's mark for lines that are to stay as they are
    place = StartUp(into) if into else StartUp.of_this_interpreter()
    if not place.write():
        click.echo(f"enabled already in {place.folder}")
        return
    click.echo(f"wrote {place.module.name} and {place.line.name} into {place.folder}")
    click.echo("what imports fedml now activates the plugin; the job's YAML decides the rest")
    click.echo("to take it back: fedml-keylock disable")


@click.command()
@_into
def disable(into: Path | None) -> None:
    """Take back what `fedml-keylock enable` wrote, and nothing else.

    Programs that run already keep the plugin until they end. `python -m fedml_keylock` and
    `fedml_keylock.activate()` work as before.

    Example: fedml-keylock disable
    """
    place = StartUp(into) if into else StartUp.of_this_interpreter()
    removed = place.remove()
    if removed:
        names = " and ".join(path.name for path in removed)
        click.echo(f"removed {names} from {place.folder}")
    else:
        click.echo(f"not enabled in {place.folder}: nothing to remove")
