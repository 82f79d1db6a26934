"""`fedml-keylock check`: what locking a model would do to each of its layers."""

from __future__ import annotations

from pathlib import Path

import click

from .options import config_option, lock_options, model_option

__all__ = ["check"]


@click.command()
@model_option
@config_option
@lock_options
def check(builder: str, config: Path | None, **lock: str | None) -> None:
    """Say what a lock would do to each layer of a model.

    Whether it would be locked, how, and why not. Nothing is changed. Exit status 1 when the model
    cannot be locked so.

    Example: fedml-keylock check --model torchvision:resnet18 --lock paper --layers all
    """
    from ..builtin import keylock
    from ..errors import LockError
    from .job import build_model, lock_settings

    chosen = keylock(lock_settings(config, **lock))
    checked = chosen.check(build_model(builder))
    if checked.issues:
        raise LockError(str(checked))
    click.echo(str(checked))
    for weakness in filter(None, (chosen.weakness, checked.weakness)):
        click.echo(weakness, err=True)
