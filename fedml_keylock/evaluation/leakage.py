"""One row of a report: how one attack did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Interval", "LeakageRow"]

Interval = dict[str, float | int | None]
"""``mean``, ``low`` and ``high`` (95 %), ``n``. Of one value the ends are None or the mean."""


@dataclass(frozen=True)
class LeakageRow:
    """How one attack did against one defense in one round.

    Attributes:
        attack: its name, "dlg"; for a baseline what was shown instead, "mean image".
        knowledge: what the attacker knew: "oblivious", "adaptive", "oracle"; "none" without a
            defense, where there is nothing to know; "no gradient" for a baseline.
        defense: "none", or its name and settings, "keylock:affine:first".
        round: index of the round, from 0.
        stage: "untrained" or "trained": the weights that the round began with.
        images: how many were attacked.
        metrics: name to interval: "ssim", "ssim_aligned"; "psnr", "psnr_aligned" in dB;
            "label_accuracy", 0 to 1; and any other.
        cost: of the gradients, at the reconstruction. Empty for a baseline.

    """

    attack: str
    knowledge: str
    defense: str
    round: int
    stage: str
    images: int
    metrics: Mapping[str, Interval]
    cost: Interval
