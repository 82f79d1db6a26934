"""The opening pictures of a report: a column for each defense, by its best attacker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..evidence import score_of
from ..leakage import BASELINE, ORACLE, PUBLIC_NORM, UNDEFENDED, LeakageRow, title_of
from ..vocabulary import attack_name, attacker, colludes, defense_name
from ..wording import digits, mean_of
from .contents import Gallery

__all__ = ["Column", "columns_of"]

SHOWN = 4
"""Largest number of pictures in a column."""


@dataclass(frozen=True)
class Column:
    """Pictures under one heading, in the order of the originals.

    Attributes:
        heading: the defense in words, "sealed lock, with a colluding silo".
        caption: the attacker, the attack and the score.
        images: ``(n, c, h, w)`` on [0, 1].

    """

    heading: str
    caption: str
    images: Tensor = field(repr=False)


def _rows_of(gallery: Gallery, leakage: Sequence[LeakageRow]) -> list[LeakageRow]:
    """The rows of a report on a gallery's pictures, of its stage if it has one."""
    return [
        row
        for row in leakage
        if title_of(row.defense, row.attack, row.knowledge) == gallery.title
        and gallery.stage in ("", row.stage)
    ]


def columns_of(
    originals: Tensor, galleries: Sequence[Gallery], leakage: Sequence[LeakageRow]
) -> list[Column]:
    """The originals, then for each defense its best attacker and its best colluding silo.

    The key-knowing upper bound is no attacker, and the control no defense: both are left out.

    Example:
        >>> import torch
        >>> of = lambda mean: {"ssim_aligned": {"mean": mean, "low": None, "high": None, "n": 1}}
        >>> row = LeakageRow("dlg", "none", "none", 0, "untrained", 1, of(0.9), {})
        >>> picture = torch.rand(1, 1, 8, 8)
        >>> made = columns_of(picture, [Gallery("none, dlg", picture)], [row])
        >>> [(one.heading, one.caption) for one in made][1]
        ('no defense (undefended baseline)', 'honest-but-curious server, DLG: SSIM 0.90')

    """
    columns = [Column("original", "what the silo trained on", originals[:SHOWN])]
    best: dict[tuple[str, bool], tuple[float, Gallery, LeakageRow]] = {}
    for gallery in galleries:
        for row in _rows_of(gallery, leakage):
            if row.knowledge in (ORACLE, BASELINE) or row.defense == PUBLIC_NORM:
                continue
            key, score = (row.defense, colludes(row.knowledge)), score_of(row)
            if key not in best or score > best[key][0]:
                best[key] = (score, gallery, row)
    for (defense, silos), (_, gallery, row) in best.items():
        if silos and defense == UNDEFENDED and len({title for title, _ in best}) > 1:
            continue  # equals the sum under the lock
        heading = defense_name(defense) + (", with a colluding silo" if silos else "")
        who, found = attacker(row.knowledge).name, mean_of(row.metrics.get("ssim_aligned"))
        said = "" if found is None else f": SSIM {digits(found)}"
        caption = f"{who}, {attack_name(row.attack)}{said}"
        columns.append(Column(heading, caption, gallery.images[:SHOWN]))
    return columns if len(columns) > 1 else []
