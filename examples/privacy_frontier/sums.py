"""What attackers see in the noised sum of 1, 2, 4 and 9 other silos, of one image and step each.

The worst case: a batch of one image, of a silo whose observer knows all but the noise of others.
Each other silo's update is clipped, truncated to the grid and noised by the package's own code.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import by_example
import numpy as np
import torch
from sets import first_model, pictures
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parent.parent / "frontier"))

from attackers import Attacker, Effort, attackers  # the other example's
from leakage import Knowing, _that_moved

from fedml_keylock.evaluation.audit import Subject, probe
from fedml_keylock.evaluation.audit.plan import tasks_of
from fedml_keylock.evaluation.audit.score import baselines, joined, score
from fedml_keylock.evaluation.audit.training import train_update
from fedml_keylock.evaluation.audit.work import Result, work_on
from fedml_keylock.inversion import Clip, Noise, PublicData
from fedml_keylock.locks.sealed.entries import entries_of
from fedml_keylock.locks.sealed.noise import ClippedUpdate, RoundNoise
from fedml_keylock.locks.sealed.noise import Noise as SiloNoise
from fedml_keylock.types import ClientUpdate

IMAGES, PUBLIC = 9, 1000
EFFORT = Effort(images=IMAGES, restarts=4, steps=400, learning=600, rate=1.0)
STAGES = ("untrained", "trained")


def noised_mean(parts: list[ClientUpdate], multiplier: float, clip: float) -> dict[str, Tensor]:
    """The mean of other silos' states, as a silo has it that took off its own part and noise.

    Args:
        parts: what the others would send.
        multiplier: z; the noise of all of them together is z times the clip.
        clip: of each one's update.

    """
    count, base = len(parts), parts[0].before
    noise = RoundNoise(multiplier, count + 1, count, {"update": clip})
    silo, total = SiloNoise(), {name: np.zeros(v.numel(), np.int64) for name, v in base.items()}
    for part in parts:
        made = ClippedUpdate(noise, base, part.after, dict.fromkeys(base, "update"))
        for entry in entries_of(base):
            words = np.concatenate([*made.words(entry)])
            total[entry.name] += silo.over(words, made.grids[entry.name])
        made.check()
    step = 2.0 ** noise.grid("update").exponent
    moved = {n: torch.from_numpy(v * step / count).view_as(base[n]) for n, v in total.items()}
    return {name: (base[name].double() + moved[name]).to(base[name]) for name in base}


def plain_mean(parts: list[ClientUpdate]) -> dict[str, Tensor]:
    """The same without noise and clipping."""
    return {
        name: torch.stack([part.after[name].double() for part in parts]).mean(0).to(value)
        for name, value in parts[0].before.items()
    }


def subject_of(
    root: Path, work: Path, stage: str, others: int, multiplier: float, clip: float
) -> Subject:
    """The updates that an attacker has: each of the others' sum, in a silo's place."""
    data = pictures(root, "mnist")
    net = first_model(0)
    if stage == "trained":
        net = by_example.trained(work / "private.safetensors", root, "mnist", 8.0)
    subject = probe(
        net,
        data.images[:IMAGES],
        data.labels[:IMAGES],
        public=PublicData(data.test_images[:PUBLIC], data.test_labels[:PUBLIC]),
        batch=others,
        learning_rate=EFFORT.rate,
        stage=stage,
    )
    updates = []
    for update, images, labels in zip(subject.updates, subject.images, subject.labels, strict=True):
        pairs = zip(images.split(1), labels.split(1), strict=True)
        parts = [train_update(net, *pair, learning_rate=EFFORT.rate) for pair in pairs]
        seen = noised_mean(parts, multiplier, clip) if multiplier else plain_mean(parts)
        updates.append(replace(update, after=seen))
    return _that_moved(replace(subject, updates=tuple(updates)))


def attacker_of(name: str, stage: str) -> Attacker:
    """Who searches, or who has trained a decoder."""
    every = attackers("lenet")
    return every["others"][0] if name == "search" else every["simulating"][STAGES.index(stage)]


def measured(
    root: Path,
    work: Path,
    *,
    stage: str,
    others: int,
    attacker: str,
    multiplier: float,
    clip: float,
) -> dict[str, Any]:
    """One attacker's scores, and what no update gives.

    Args:
        root: of the data.
        work: for trained weights.
        stage: of the weights.
        others: how many silos are in the sum.
        attacker: "search" or "decoder"; a decoder is trained for one image only.
        multiplier: z; 0 for no noise and no clipping.
        clip: of an update, at a learning rate of 1.

    """
    torch.manual_seed(0)
    subject = subject_of(root, work, stage, others, multiplier, clip)
    attack = attacker_of(attacker, stage).attack(EFFORT)
    level = "oblivious" if attacker == "search" else "simulating"
    tasks = [
        task
        for task in tasks_of(subject, {"attack": attack}, [level], seed=0)
        if task.trial.level == level
    ]
    if multiplier:
        known = (Clip(clip), Noise(multiplier * clip))
        tasks = [Knowing(**vars(task), transforms=known) for task in tasks]
    results = [work_on(task) for task in tasks]
    if said := [result for result in results if isinstance(result, str)]:
        raise SystemExit(said[0])
    scored = score(joined([Result.of(r) for r in results]), subject.images, subject.labels)
    rows = baselines(
        subject.images.flatten(0, 1),
        subject.labels.flatten(),
        subject.public,
        stage=stage,
        round_index=0,
    )
    floors: Mapping[str, float] = {row.attack: row.metrics["ssim_aligned"]["mean"] for row in rows}
    means = {name: float(value.nanmean()) for name, value in scored.metrics.items()}
    return {
        "ssim_aligned": means["ssim_aligned"],
        "label_accuracy": means["label_accuracy"],
        "each": [round(one, 3) for one in scored.metrics["ssim_aligned"].flatten().tolist()],
        "floors": {name: round(value, 4) for name, value in floors.items()},
        "multiplier": multiplier,
        "clip": clip,
    }
