"""`fedml-keylock enable` and `disable`: adds or removes a start-up file in site-packages."""

from __future__ import annotations

from pathlib import Path

import click

from ..host.startup_file import StartUp

__all__ = ["disable", "enable"]


_into = click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    hidden=True,
    help="A folder in place of this environment's site-packages.",
)


@click.command()
@_into
def enable(into: Path | None) -> None:
    """Activate the plugin wherever this environment imports fedml.

    For jobs that another program launches, without `python -m fedml_keylock`: `fedml launch`, a
    scheduler, a notebook. The job's YAML still decides whether a job is defended.

    It writes fedml_keylock_startup.pth and .py into this environment's site-packages. Python reads
    them at its start (under 1 ms), but not with -S. With an untested FedML release only jobs that
    ask for the defense stop.

    \b
    On every host of the job:  fedml-keylock enable
    See whether it is active:  fedml-keylock doctor
    Undo it:                   fedml-keylock disable
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
    """Remove only the files that `fedml-keylock enable` wrote.

    Running programs keep the plugin until they end. `python -m fedml_keylock` and
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
