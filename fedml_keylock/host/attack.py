"""What the server does after the last round, if asked: attack the updates that it captured."""

from __future__ import annotations

from functools import partial
from typing import Any

import click
from torch import nn
from tqdm import tqdm

from ..errors import AttackError
from ..evaluation.capture import Capture
from ..evaluation.run import attack_updates, knowledge_of, save_reconstruction, trials
from ..evaluation.settings import InversionSettings
from ..inversion import PublicData
from ..plugins import manager, one_of
from ..types import Defense

__all__ = ["attack_capture"]


def attack_capture(
    capture: Capture,
    settings: InversionSettings,
    model: nn.Module,
    defense: Defense | None,
    *,
    public: PublicData | None,
    classes: int,
    seed: int,
) -> None:
    """Reconstruct what the captured updates give away, as this server could, and say where it is.

    It speaks on stderr: FedML keeps a logger's lines to itself, and these are what the user asked
    for. An attack that fails is reported and does not stop the others: training is over.

    Args:
        capture: what was captured.
        settings: the YAML's section.
        model: the job's.
        defense: the job's, or None.
        public: the server's own test data, or None where they are not images.
        classes: how many the model has.
        seed: of the attacker.

    Raises:
        AttackError: the job's data are not images.

    """
    if public is None:
        raise AttackError("the job's test data gives no (c, h, w) images to reconstruct")
    updates = capture.updates()[: settings.images]
    surrogate = defense.surrogate(model) if defense else None
    attacks = {n: one_of("attacks", n)(**fields) for n, fields in settings.attacks.items()}
    for name, level in trials(attacks, settings.knowledge, defended=surrogate is not None):
        knowledge = knowledge_of(
            level,
            input_shape=tuple(public.images.shape[1:]),
            classes=classes,
            surrogate=surrogate,
            public=public,
        )
        try:
            with tqdm(desc=f"{name}, {level}", unit="step", leave=False) as bar:
                made = attack_updates(
                    attacks[name],
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
