"""What the server does after the last round, if asked: attack the updates that it captured."""

from __future__ import annotations

from functools import partial
from typing import Any

import click
from torch import nn
from tqdm import tqdm

from ..errors import AttackError
from ..evaluation.capture import Capture
from ..evaluation.run import attack_updates, knowledge_of, save_reconstruction
from ..evaluation.settings import InversionSettings
from ..plugins import manager, one_of
from ..types import Defense

__all__ = ["attack_capture"]


def attack_capture(
    capture: Capture,
    settings: InversionSettings,
    model: nn.Module,
    defense: Defense | None,
    *,
    input_shape: tuple[int, int, int] | None,
    classes: int,
    seed: int,
) -> None:
    """Reconstruct what the captured updates give away, as this server could, and say where it is.

    It speaks on stderr: FedML keeps a logger's lines to itself, and these are what the user asked
    for. An attack that fails is reported and does not stop the others: training is over.

    Raises:
        AttackError: the job's data are not images.

    """
    if input_shape is None:
        raise AttackError("the job's test data gives no (c, h, w) images to reconstruct")
    updates = capture.updates()[: settings.images]
    surrogate = defense.surrogate(model) if defense else None
    levels = settings.knowledge if surrogate else ("oblivious",)
    for name, level in ((name, level) for name in settings.attacks for level in levels):
        knowledge = knowledge_of(
            level, input_shape=input_shape, classes=classes, surrogate=surrogate
        )
        try:
            with tqdm(desc=f"{name}, {level}", unit="step", leave=False) as bar:
                made = attack_updates(
                    one_of("attacks", name)(),
                    updates,
                    model,
                    knowledge=knowledge,
                    surrogate=surrogate,
                    seed=seed,
                    progress=partial(_advance, bar),
                )
        except AttackError as error:
            click.echo(f"fedml-keylock: {name}, {level}: {error}", err=True)
            manager().hook.on_attack_error(attack=name, error=error)
            continue
        path = save_reconstruction(settings.output, made, updates)
        costs = ", ".join(f"{cost:.3g}" for cost in made.cost.tolist())
        click.echo(
            f"fedml-keylock: {name}, {level}: cost reached {costs}; pictures in {path}", err=True
        )


def _advance(bar: tqdm[Any], done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)
