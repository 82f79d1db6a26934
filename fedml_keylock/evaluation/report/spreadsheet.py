"""Writes the rows of a report as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from itertools import chain

from ..leakage import LeakageRow
from ..wording import ends_of, mean_of

__all__ = ["leakage_csv"]

_OWN = ("attack", "knowledge", "defense", "round", "stage", "images", "seeds")
_ENDS = ("mean", "low", "high")


def leakage_csv(rows: Sequence[LeakageRow], metrics: Sequence[str]) -> str:
    """A line for each row, with mean and interval of each metric and of the cost.

    The metrics are in the given order. Missing values are empty.

    Example:
        >>> row = LeakageRow("dlg", "none", "none", 0, "trained", 1, {"ssim": {"mean": 0.5}}, {})
        >>> print(leakage_csv([row], ["ssim"]), end="")
        attack,knowledge,defense,round,stage,images,seeds,ssim_mean,ssim_low,ssim_high,cost_mean,cost_low,cost_high
        dlg,none,none,0,trained,1,1,0.5,,,,,

    """
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow([*_OWN, *(f"{name}_{end}" for name in (*metrics, "cost") for end in _ENDS)])
    for row in rows:
        intervals = [*(row.metrics.get(name) or {} for name in metrics), row.cost]
        numbers = [(mean_of(one), *(ends_of(one) or (None, None))) for one in intervals]
        lines.writerow([*(getattr(row, name) for name in _OWN), *chain(*numbers)])
    return text.getvalue()
