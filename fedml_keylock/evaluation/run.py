"""Run an attack on captured updates, at one level of knowledge."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import AttackError
from ..inversion import GradientInversion, Knowledge, Secrets
from ..types import ClientUpdate, Reconstruction, Surrogate

__all__ = ["attack_updates", "knowledge_of", "save_reconstruction"]


def knowledge_of(
    level: str,
    *,
    input_shape: tuple[int, int, int],
    classes: int,
    surrogate: Surrogate | None,
    given: Mapping[str, Tensor] | None = None,
) -> Knowledge:
    """What an attacker of that level knows of updates of one image each.

    Args:
        level: "oblivious", "adaptive" or "oracle".
        input_shape: ``(c, h, w)``.
        classes: how many the model has.
        surrogate: the defended model as the attacker knows it; None where nothing is defended.
        given: for the oracle, name to ``(u, *shape)``: the silos' own private state.

    Raises:
        AttackError: the level needs what is not there.

    Example:
        >>> knowledge_of("oblivious", input_shape=(1, 8, 8), classes=2, surrogate=None).level
        'oblivious'

    """
    if surrogate is None:
        if level != "oblivious":
            raise AttackError(f"nothing is defended, so that there is nothing to be {level} about")
        return Knowledge(level, input_shape, classes)
    secrets = Secrets(
        surrogate.names,
        draw=surrogate.draw if level == "adaptive" else None,
        given=given if level == "oracle" else None,
    )
    return Knowledge(level, input_shape, classes, secrets=secrets)


def attack_updates(
    attack: GradientInversion,
    updates: Sequence[ClientUpdate],
    model: nn.Module,
    *,
    knowledge: Knowledge,
    surrogate: Surrogate | None,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Reconstruction:
    """Reconstruct, on the attacker's model: the surrogate where there is a defense.

    Args:
        attack: the configured attack.
        updates: each of one step on one image.
        model: the public model.
        knowledge: as `knowledge_of` makes it.
        surrogate: as given to `knowledge_of`.
        seed: of the attacker's own generator.
        progress: called with evaluations done and evaluations in all.

    Raises:
        AttackError: the updates, the model and the knowledge do not fit together.

    """
    return attack.reconstruct(
        updates,
        model if surrogate is None else surrogate.model,
        knowledge=knowledge,
        generator=torch.Generator().manual_seed(seed),
        progress=progress,
    )


def save_reconstruction(
    folder: Path, reconstruction: Reconstruction, updates: Sequence[ClientUpdate]
) -> Path:
    """Write images and labels ``(u, n, ...)`` beside each other, with where they come from.

    Raises:
        AttackError: the file cannot be written.

    """
    path = folder / f"{reconstruction.attack}-{reconstruction.knowledge}.safetensors"
    source = [{"round": update.round, "silo": update.silo} for update in updates]
    tensors = {
        "images": reconstruction.images.contiguous(),
        "labels": reconstruction.labels.contiguous(),
        "cost": reconstruction.cost.contiguous(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, {"updates": json.dumps(source)})
    except OSError as error:
        raise AttackError(f"{path}: cannot be written: {error.strerror}") from None
    return path
