"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

__all__ = ["FILE", "FOLDER", "config_option", "lock_options", "model_option"]

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)

model_option = click.option(
    "--model",
    "builder",
    metavar="MODULE:CALLABLE",
    required=True,
    help="Makes the job's model, without arguments; searched in this folder first. Or "
    "torchvision:NAME.",
)

config_option = click.option(
    "--config",
    type=FILE,
    help="The job's fedml_config.yaml. Default: the defaults of every keylock field.",
)

_lock = click.option(
    "--lock",
    "lock_kind",
    type=click.Choice(["sealed", "rotated", "paper"]),
    help="Without a job's YAML: sealed (the default), rotated (for robust_aggregation) or paper "
    "(the published lock).",
)
_layers = click.option(
    "--layers", help="Of lock: paper: first, all, or globs, separated by commas."
)


def lock_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that choose the lock without a job's YAML; `lock_settings` reads them."""
    return _lock(_layers(command))
