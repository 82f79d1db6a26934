"""Decides which rows of a report are evidence: which attacks work, and which scores count.

1. An attack *works* if its run without a defense reaches ``WORKS`` in any round. The failure of
   an attack that does not work is no evidence; its success is, from ``WORKS`` on.
2. A score counts only above the best baseline of public data without a gradient, if one was run.
   The nearest public image is no such baseline: it is chosen with the truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .leakage import BASELINE, NEAREST, PUBLIC_NORM, SUM, UNDEFENDED, LeakageRow
from .vocabulary import attack_name
from .wording import digits, interval_text, mean_of

__all__ = ["WORKS", "Evidence", "best_of", "count_text", "measured", "names_of", "score_of"]

WORKS = 0.5
"""Aligned SSIM from which an attack works: outlines are in place.

The mean image of a class stays below it (.41 on digits and .47 on faces, 99 in 100 rows of 20
pictures). Of digits that searches recover at .5 to .6, 92 % are nearer to the truth than to any of
4,999 others (``plugin_tests/benchmarks/scores.py``).
"""


class Evidence:
    """All rows of a report, sorted by what they are evidence of.

    Attributes:
        attacked: the rows of attacks on single updates, with and without a defense.
        sums: the rows of attacks on the sum of several silos, which no lock hides from silos.
        control: the rows of the control: public normalisation, which is no defense.
        floor: the best row of public data alone; None if none was run.
        undefended: each attack's best row without a defense.

    """

    def __init__(self, rows: Sequence[LeakageRow]) -> None:
        shown = [row for row in rows if row.knowledge != BASELINE]
        self.sums = [row for row in shown if row.knowledge.startswith(SUM)]
        single = [row for row in shown if not row.knowledge.startswith(SUM)]
        self.attacked = [row for row in single if row.defense != PUBLIC_NORM]
        self.control = [row for row in single if row.defense == PUBLIC_NORM]
        self.floor = best_of(r for r in rows if r.knowledge == BASELINE and r.attack != NEAREST)
        self.undefended: dict[str, LeakageRow] = {}
        for name in names_of(self.attacked):
            own = [r for r in self.attacked if r.defense == UNDEFENDED and r.attack == name]
            if best := best_of(own):
                self.undefended[name] = best

    def sunk(self, row: LeakageRow) -> bool:
        """Whether public data alone scores as high."""
        return self.floor is not None and score_of(row) <= score_of(self.floor)

    def reaches(self, row: LeakageRow, threshold: float) -> bool:
        """Whether the score reaches the threshold, and counts."""
        return score_of(row) >= threshold and not self.sunk(row)

    def works(self, attack: str) -> bool:
        """Whether the attack works without a defense."""
        return attack in self.undefended and self.reaches(self.undefended[attack], WORKS)

    def counts(self, row: LeakageRow) -> bool:
        """Whether the row is evidence, as failure or as success."""
        return self.works(row.attack) or self.reaches(row, WORKS)

    def short_of(self, row: LeakageRow, threshold: float, meaning: str) -> str:
        """Why a row does not reach a threshold, in words."""
        if score_of(row) < threshold or self.floor is None:
            return f"short of the {threshold:.2f} {meaning}"
        return f"no more than the {digits(score_of(self.floor))} of public data alone"


def score_of(row: LeakageRow) -> float:
    """The row's mean aligned SSIM; -1, the least possible, if it has none."""
    value = mean_of(row.metrics.get("ssim_aligned"))
    return -1.0 if value is None else value


def best_of(rows: Iterable[LeakageRow]) -> LeakageRow | None:
    """The row with the highest score, of those that have one."""
    scored = [row for row in rows if mean_of(row.metrics.get("ssim_aligned")) is not None]
    return max(scored, key=score_of, default=None)


def names_of(rows: Iterable[LeakageRow], column: str = "attack") -> list[str]:
    """The distinct values of a column."""
    return list(dict.fromkeys(str(getattr(row, column)) for row in rows))


def measured(row: LeakageRow, *, by: bool = True) -> str:
    """A row's score in words; names the attack if `by`."""
    score = interval_text(row.metrics.get("ssim_aligned"), most=1.0)
    if by:
        score += f" with {attack_name(row.attack)}"
    return f"{score} (round {row.round}, {row.stage} weights, {count_text(row.images)})"


def count_text(images: int) -> str:
    """A number of images in words."""
    return "1 image" if images == 1 else f"{images} images"
