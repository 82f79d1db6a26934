"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["config_option", "model_option"]

model_option = click.option(
    "--model",
    "builder",
    metavar="MODULE:CALLABLE",
    required=True,
    help="Makes the job's model, without arguments; looked for in this folder first.",
)

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The job's fedml_config.yaml; the defaults of every keylock field without it.",
)
