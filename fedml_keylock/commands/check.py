"""`fedml-keylock check`: what locking a model would do to each of its layers."""

from __future__ import annotations

from pathlib import Path

import click

from .options import config_option, model_option

__all__ = ["check"]


@click.command()
@model_option
@config_option
@click.option("--module", help="Without --config: affine, mixing, weights, weights+norm, ...")
@click.option("--targets", help="Without --config: first, all, or globs with commas between them.")
def check(builder: str, config: Path | None, module: str | None, targets: str | None) -> None:
    """Say of each layer of a model whether it would be locked, how, and why not.

    Nothing is changed. Exit status 1 when the model cannot be locked so.

    Example: fedml-keylock check --model torchvision.models:resnet18 --targets all
    """
    from ..errors import LockError
    from ..keylock import KeyLockConfig, check_model
    from .job import build_model, keylock_settings

    settings = dict(keylock_settings(config))
    if config is not None and (module or targets):
        raise click.UsageError("--config has module and targets: give it, or these")
    if module:
        settings["module"] = module
    if targets:
        settings["targets"] = targets if targets in ("first", "all") else targets.split(",")
    checked = check_model(build_model(builder), KeyLockConfig.from_mapping(settings))
    if checked.issues:
        raise LockError(str(checked))
    click.echo(str(checked))
