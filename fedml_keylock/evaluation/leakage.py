"""The records of a leakage report: an attack's scores, and the cost of its search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import ConfigError

__all__ = ["CostCurve", "Interval", "LeakageRow", "Worst", "sum_label", "title_of"]

UNDEFENDED, BASELINE, ORACLE = "none", "no gradient", "oracle"
"""A row's defense if there is none, and the knowledge of a baseline's row."""
NEAREST = "nearest public image"
"""A baseline chosen with the truth: it is shown, and is no floor."""
PUBLIC_NORM = "public norm"
"""The control in place of a defense: the lock's normalisation, with nothing secret."""
NOT_SCORED = "not scored: diverged in every restart, or nothing was changed"
"""Key in a report's job: title to the number of updates without a picture, which are not scored."""
SUM = "colluding silo, sum of "
"""Prefix of a row's knowledge if the average of several silos' updates was attacked."""
WINDOW = 11
"""Side of SSIM's window (sigma 1.5) in pixels, and so of the smallest picture that has an SSIM."""

Interval = dict[str, float | int | None]
"""``mean``, ``low`` and ``high`` (95 %), ``n``. For one value the ends are None or the mean."""


Worst = dict[str, float | int]
"""The ``score`` of the picture that leaks most by a metric, and its index ``picture``, from 0,
among those audited."""


@dataclass(frozen=True)
class LeakageRow:
    """The scores of one attack against one defense in one round.

    Attributes:
        attack: its name, "dlg"; for a baseline the image that was scored, "mean image".
        knowledge: the attacker's level: "oblivious", "adaptive", "oracle"; "none" without a
            defense; "no gradient" for a baseline.
            `sum_label` for an average of several silos' updates.
        defense: "none", or its name and settings, "keylock:paper:first".
        round: index of the round, from 0.
        stage: "untrained" or "trained": the weights at the round's start.
        images: the number of images attacked.
        metrics: name to interval: "ssim", "ssim_aligned"; "psnr", "psnr_aligned" in dB; "lpips",
            "lpips_aligned", where 0 is the picture itself; "label_accuracy", 0 to 1; any other.
        cost: of gradient matching, at the reconstruction. Empty for a baseline.
        seeds: the number of runs of the attack, each from another seed.
        worst: metric to the picture that leaks most by it. Empty for a baseline.

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
    """The cost over the steps of one attack's search.

    Attributes:
        title: "keylock:paper:all, inverting_gradients, adaptive".
        steps: of the search, from 0.
        cost: at each step, of the best restart, averaged over the images.

    Raises:
        ConfigError: the numbers of costs and steps differ.

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
    """The knowledge of an attacker who has only the sum of this many silos' updates.

    Example:
        >>> sum_label(1), sum_label(4)
        ('colluding silo, sum of 1 other', 'colluding silo, sum of 4 others')

    """
    return f"{SUM}{silos} other{'s' * (silos != 1)}"


def title_of(defense: str, attack: str, knowledge: str) -> str:
    """Heading of a row's pictures and curves; the level is left out if nothing is secret.

    Example:
        >>> title_of("keylock", "dlg", "adaptive"), title_of("none", "dlg", "none")
        ('keylock, dlg, adaptive', 'none, dlg')

    """
    return f"{defense}, {attack}" + ("" if knowledge == "none" else f", {knowledge}")
