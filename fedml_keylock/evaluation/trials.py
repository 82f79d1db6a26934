"""Runs an attack on captured updates, at one level of knowledge."""

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
    """Pairs ``(name, level)`` of each attack and each level at which it can run.

    Without a defense there is nothing to know of it: levels without public data become the
    oblivious one.

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
    """The knowledge of an attacker at a level.

    Args:
        level: one of ``inversion.LEVELS``.
        attacker_model: the defended model as the attacker knows it; None without a defense.
        given: private state by name: the silos' own ``(u, *shape)`` for the oracle, that of
            colluding silos ``(p, *shape)`` for the insider.
        public: public data, for the simulating attacker only.
        known: other fields of ``Knowledge``.

    Raises:
        AttackError: something that the level needs is missing.

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
    """Run `Attack.reconstruct` from a seed, on the updates as the attacker reads them.

    The model is the attacker's model if there is a defense, else the public one. An attack that
    searches resumes from the checkpoint file; others start anew.

    Raises:
        AttackError: the updates, the model and the knowledge do not fit together, or the attack
            failed for any reason.

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
    except Exception as error:  # any failure of any attack: it must not end an audit or a job
        raise AttackError(
            f"{attack.name} failed on {type(model).__name__}: {reason_of(error)}"
        ) from error


def save_reconstruction(
    folder: Path, reconstruction: Reconstruction, updates: Sequence[ClientUpdate]
) -> Path:
    """Write images and labels ``(u, n, ...)`` to one file, with their origin.

    The file is written whole or not at all, then AttackError. Only its owner can read it: it shows
    somebody's data.
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
