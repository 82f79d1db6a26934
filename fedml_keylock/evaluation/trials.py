"""Run an attack on captured updates, at one level of knowledge."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import AttackError, KeyLockError, reason_of
from ..files import replacing
from ..inversion import (
    GRANTS,
    Attack,
    GradientInversion,
    Knowledge,
    PublicData,
    Secrets,
    check_level,
)
from ..types import AttackerModel, ClientUpdate, Reconstruction

__all__ = ["attack_updates", "knowledge_of", "save_reconstruction", "trials"]


def trials(
    attacks: Mapping[str, Attack], levels: Sequence[str], *, defended: bool
) -> list[tuple[str, str]]:
    """Each attack at each level that it can run at and that there is something to know at.

    Each is ``(name, level)``, attack by attack. Without a defense the levels at which an attacker
    knows of one, and no more, are the oblivious one again.

    Raises:
        AttackError: an attack can run at none of the levels.

    Example:
        >>> from fedml_keylock.inversion import dlg
        >>> trials({"dlg": dlg()}, ("oblivious", "temporal"), defended=True)
        [('dlg', 'oblivious')]

    """
    found: list[tuple[str, str]] = []
    for name, attack in attacks.items():
        refusals = []
        for level in levels:
            try:
                check_level(attack, level)
            except AttackError as error:
                refusals.append(error)
            else:
                found.append((name, level))
        if len(refusals) == len(levels):
            raise refusals[0]
    if not defended:
        found = [
            (name, level if "public data" in GRANTS[level] else "oblivious")
            for name, level in found
        ]
    return list(dict.fromkeys(found))


def knowledge_of(
    level: str,
    *,
    attacker_model: AttackerModel | None,
    given: Mapping[str, Tensor] | None = None,
    public: PublicData | None = None,
    **known: Any,
) -> Knowledge:
    """What an attacker of that level knows.

    Args:
        level: one of ``inversion.LEVELS``.
        attacker_model: the defended model as the attacker knows it; None where nothing is defended.
        given: private state by name: for the oracle the silos' own, ``(u, *shape)``; for the
            insider that of colluding silos, ``(p, *shape)``.
        public: for the simulating attacker: used at no other level.
        known: other fields of ``Knowledge``.

    Raises:
        AttackError: the level needs what is not there.

    Example:
        >>> knowledge_of("oblivious", input_shape=(1, 8, 8), classes=2, attacker_model=None).level
        'oblivious'

    """
    grants = GRANTS[level]
    if "public data" in grants:
        known |= {
            "public": public,
            "update_transform": attacker_model and attacker_model.update_transform,
        }
    if attacker_model is not None and attacker_model.names:
        known["secrets"] = Secrets(
            attacker_model.names,
            draw=attacker_model.draw if "kind" in grants else None,
            given=given if "private state" in grants else None,
            peers=given if "peer" in grants else None,
        )
    elif attacker_model is None and level not in ("oblivious", "simulating"):
        raise AttackError(f"nothing is defended, so that there is nothing to be {level} about")
    return Knowledge(level, **known)


def attack_updates(
    attack: Attack,
    updates: Sequence[ClientUpdate],
    model: nn.Module,
    *,
    knowledge: Knowledge,
    attacker_model: AttackerModel | None,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    checkpoint: Path | None = None,
) -> Reconstruction:
    """Reconstruct as by `Attack.reconstruct`, on the attacker's model, from a seed.

    With a defense he has the attacker's model, and without one the public model. The updates are
    what he reads of them. The checkpoint is a file to go on from, for an attack that
    searches; others begin anew.

    Raises:
        AttackError: the updates, the model and the knowledge do not fit together; or the attack
            failed, for whatever reason.

    """
    reconstruct = attack.reconstruct
    if isinstance(attack, GradientInversion):
        reconstruct = partial(attack.reconstruct, checkpoint=checkpoint)
    try:
        return reconstruct(
            updates
            if attacker_model is None
            else [attacker_model.read(update) for update in updates],
            model if attacker_model is None else attacker_model.model,
            knowledge=knowledge,
            generator=torch.Generator().manual_seed(seed),
            progress=progress,
        )
    except KeyLockError:
        raise
    except Exception as error:  # anyone's attack on anyone's model: it never ends an audit or a job
        raise AttackError(
            f"{attack.name} failed on {type(model).__name__}: {reason_of(error)}"
        ) from error


def save_reconstruction(
    folder: Path, reconstruction: Reconstruction, updates: Sequence[ClientUpdate]
) -> Path:
    """Write images and labels ``(u, n, ...)`` beside each other, with where they come from.

    The file is whole or not there, or else this is an AttackError. It is its owner's only: they are
    pictures of somebody's data.
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
        with replacing(path) as part:
            save_file(tensors, part, {"updates": json.dumps(source)})
    except (OSError, SafetensorError) as error:
        raise AttackError(f"{path}: cannot be written: {error}") from None
    return path
