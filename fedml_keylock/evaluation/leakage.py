"""The records that a report is made of: how one attack did, and how its search went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import ConfigError

__all__ = ["CostCurve", "Interval", "LeakageRow", "Worst", "sum_label"]

UNDEFENDED, BASELINE, ORACLE = "none", "no gradient", "oracle"
"""A row's defense where there is none, and its knowledge where it is no attacker's."""
NEAREST = "nearest public image"
"""A baseline that is chosen by the truth, so that it is shown and excuses nothing."""
PUBLIC_NORM = "public norm"
"""The control in the place of a defense: the lock's normalisation, and nothing that is secret."""
SUM = "colluding silo, sum of "
"""How the knowledge of a row begins that is of an average of several silos' updates."""
WINDOW = 11
"""Side of SSIM's window at its sigma of 1.5, and of the smallest picture that has an SSIM."""

Interval = dict[str, float | int | None]
"""``mean``, ``low`` and ``high`` (95 %), ``n``. Of one value the ends are None or the mean."""


Worst = dict[str, float | int]
"""The ``score`` of the picture that gives most away by a metric, and which ``picture`` it is, from
0, of those that were audited."""


@dataclass(frozen=True)
class LeakageRow:
    """How one attack did against one defense in one round.

    Attributes:
        attack: its name, "dlg"; for a baseline what was shown instead, "mean image".
        knowledge: what the attacker knew: "oblivious", "adaptive", "oracle"; "none" without a
            defense, where there is nothing to know; "no gradient" for a baseline.
            `sum_label` for an average of several silos' updates.
        defense: "none", or its name and settings, "keylock:paper:first".
        round: index of the round, from 0.
        stage: "untrained" or "trained": the weights that the round began with.
        images: how many were attacked.
        metrics: name to interval: "ssim", "ssim_aligned"; "psnr", "psnr_aligned" in dB; "lpips",
            "lpips_aligned", where 0 is the picture itself; "label_accuracy", 0 to 1; any other.
        cost: of the gradients, at the reconstruction. Empty for a baseline.
        seeds: how many times the attack was run, each with other random numbers.
        worst: metric to the one picture that gives most away by it. Empty for a baseline.

    """

    attack: str
    knowledge: str
    defense: str
    round: int
    stage: str
    images: int
    metrics: Mapping[str, Interval]
    cost: Interval
    seeds: int = 1
    worst: Mapping[str, Worst] = field(default_factory=dict)


@dataclass(frozen=True)
class CostCurve:
    """How the cost fell in one attack's search.

    Attributes:
        title: "keylock:paper:all, inverting_gradients, adaptive".
        steps: of the search, from 0.
        cost: at each of them, the kept restart's, the mean over the images.

    Raises:
        ConfigError: there are not as many costs as steps.

    Example:
        >>> CostCurve("none, dlg", (0, 10), (1.0, 0.02)).cost[-1]
        0.02

    """

    title: str
    steps: tuple[int, ...]
    cost: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.cost):
            raise ConfigError(
                f"cost curve {self.title!r} has {len(self.steps)} steps and {len(self.cost)} costs"
            )


def sum_label(silos: int) -> str:
    """The knowledge of an attacker who has the sum of so many silos' updates, and no single one.

    Example:
        >>> sum_label(1), sum_label(4)
        ('colluding silo, sum of 1 other', 'colluding silo, sum of 4 others')

    """
    return f"{SUM}{silos} other{'s' * (silos != 1)}"
