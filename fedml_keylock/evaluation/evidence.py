"""What the rows of a report prove: which attacks work, what counts, and what is best.

1. An attack *works* if the run without a defense reaches ``WORKS`` in any round. The failure of an
   attack that does not work says nothing; its success still does, from ``WORKS`` on.
2. A score counts only above the best that public data gives with no gradient, where that was run;
   the nearest of the public images, which only the truth tells, is no such thing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .leakage import BASELINE, NEAREST, PUBLIC_NORM, SUM, UNDEFENDED, LeakageRow
from .wording import digits, interval_text, mean_of

__all__ = ["WORKS", "Evidence", "best_of", "count_text", "measured", "names_of", "score_of"]

WORKS = 0.5
"""Aligned SSIM from which an attack works: outlines are where they were.

It is above what the mean of the class gives (.41 on digits and .47 on faces, 99 in 100 rows of 20
pictures). Of digits that searches bring back at .5 to .6, 92 % are nearer to the truth than to any
of 4,999 others (``plugin_tests/benchmarks/scores.py``).
"""


class Evidence:
    """Everything that was run.

    Attributes:
        attacked: the rows of attacks, those without a defense among them.
        control: the rows of the control, which is no defense that anybody asked about.
        sums: the rows of averages of several silos' updates, of which no light is made.
        floor: the best row of public data alone; None where that was not run.
        undefended: each attack's best row without a defense.

    """

    def __init__(self, rows: Sequence[LeakageRow]) -> None:
        shown = [row for row in rows if row.knowledge != BASELINE]
        self.sums = [row for row in shown if row.knowledge.startswith(SUM)]
        alone = [row for row in shown if not row.knowledge.startswith(SUM)]
        self.attacked = [row for row in alone if row.defense != PUBLIC_NORM]
        self.control = [row for row in alone if row.defense == PUBLIC_NORM]
        self.floor = best_of(r for r in rows if r.knowledge == BASELINE and r.attack != NEAREST)
        self.undefended: dict[str, LeakageRow] = {}
        for name in names_of(self.attacked):
            own = [r for r in self.attacked if r.defense == UNDEFENDED and r.attack == name]
            if best := best_of(own):
                self.undefended[name] = best

    def sunk(self, row: LeakageRow) -> bool:
        """Whether the score is no more than what public data gives."""
        return self.floor is not None and score_of(row) <= score_of(self.floor)

    def reaches(self, row: LeakageRow, threshold: float) -> bool:
        """Whether the score is that much, and counts."""
        return score_of(row) >= threshold and not self.sunk(row)

    def works(self, attack: str) -> bool:
        """Whether the attack works where nothing is defended."""
        return attack in self.undefended and self.reaches(self.undefended[attack], WORKS)

    def counts(self, row: LeakageRow) -> bool:
        """Whether the row says anything, as failure or as success."""
        return self.works(row.attack) or self.reaches(row, WORKS)

    def of_sums(self, defense: str, threshold: float) -> str:
        """In words: which of a defense's sums give images back; nothing where none was attacked."""
        said = ""
        own = [row for row in self.sums if row.defense == defense]
        for name in names_of(own, "knowledge"):
            best = best_of(row for row in own if row.knowledge == name)
            if best is not None:
                back = "come back" if self.reaches(best, threshold) else "did not come back"
                of = name.removeprefix(SUM)
                said += f" From the sum of {of} to a colluding silo images {back}: "
                said += f"{measured(best)}."
        return said

    def short_of(self, row: LeakageRow, threshold: float, meaning: str) -> str:
        """In words: why a row does not reach a threshold."""
        if score_of(row) < threshold or self.floor is None:
            return f"short of the {threshold:.2f} {meaning}"
        return f"no more than the {digits(score_of(self.floor))} that public data alone gives"


def score_of(row: LeakageRow) -> float:
    """The mean aligned SSIM; -1, its own least, where there is none."""
    value = mean_of(row.metrics.get("ssim_aligned"))
    return -1.0 if value is None else value


def best_of(rows: Iterable[LeakageRow]) -> LeakageRow | None:
    """The row with the highest score, among those that have one."""
    scored = [row for row in rows if mean_of(row.metrics.get("ssim_aligned")) is not None]
    return max(scored, key=score_of, default=None)


def names_of(rows: Iterable[LeakageRow], column: str = "attack") -> list[str]:
    """What stands in a column, each once."""
    return list(dict.fromkeys(str(getattr(row, column)) for row in rows))


def measured(row: LeakageRow, *, by: bool = True) -> str:
    """A row's score in words, with its attack or without."""
    score = interval_text(row.metrics.get("ssim_aligned"), most=1.0)
    if by:
        score += f" with {row.attack}"
    return f"{score} (round {row.round}, {row.stage} weights, {count_text(row.images)})"


def count_text(images: int) -> str:
    """A number of images in words."""
    return "1 image" if images == 1 else f"{images} images"
