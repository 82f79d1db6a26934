"""The frontier as a picture: what the strongest attacker sees against what accuracy it costs."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from table import ABOVE_FLOOR, CLASS_MEAN, POINTS_LOST, Row

mpl.use("Agg")
import matplotlib.pyplot as plt

STAGES = ("untrained", "trained")
MARKERS = "osD^vPX*<>hp"
TICKS = (-90, -30, -10, -3, -1, -0.5, 0, 1, 3)


def draw(rows: Sequence[Row], path: Path) -> Path:
    """One panel for each stage, a row of panels for each net and data; of what was attacked."""
    shown = [row for row in rows if row["stages"] and row["own_minus_plain"]]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in shown:
        groups.setdefault((row["net"], row["data"]), []).append(row)
    families = list(dict.fromkeys(row["family"] for row in shown))
    height = max(1, len(groups))
    figure, axes = plt.subplots(height, 2, figsize=(12, 5 * height), squeeze=False, sharey=True)
    for line, (key, some) in zip(axes, groups.items(), strict=False):
        for axis, stage in zip(line, STAGES, strict=True):
            _panel(axis, some, stage, families)
            axis.set_title(f"{key[0]}, {key[1]}, {stage} weights")
    if families:
        axes[0][0].legend(fontsize=8, loc="best")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _panel(axis: plt.Axes, rows: Sequence[Row], stage: str, families: Sequence[str]) -> None:
    floors = []
    for row in rows:
        made = row["stages"].get(stage)
        if not made or not made["strongest"]:
            continue
        score, cost = made["attackers"][made["strongest"]]["ssim_aligned"], row["own_minus_plain"]
        place = families.index(row["family"])
        known = axis.get_legend_handles_labels()[1]
        axis.errorbar(
            cost["mean"],
            score["mean"],
            xerr=_half(cost),
            yerr=_half(score),
            fmt=MARKERS[place % len(MARKERS)],
            color=f"C{place % 10}",
            elinewidth=0.7,
            label=None if row["family"] in known else row["family"],
        )
        where = (cost["mean"], score["mean"])
        axis.annotate(row["point"], where, (4, 4), textcoords="offset points", fontsize=7)
        floor = next(iter(made["floors"].values()))[CLASS_MEAN]
        if floor is not None:
            floors.append(floor["mean"])
    if floors:
        # the same images for all points
        axis.axhline(floors[0], color="grey", linewidth=1, label="_")
        axis.axhline(floors[0] + ABOVE_FLOOR, color="grey", linewidth=1, linestyle="--", label="_")
        axis.text(0.01, floors[0], "class mean", fontsize=7, transform=axis.get_yaxis_transform())
        high = floors[0] + ABOVE_FLOOR
        axis.text(0.01, high, "the target", fontsize=7, transform=axis.get_yaxis_transform())
    axis.axvline(-POINTS_LOST, color="grey", linewidth=1, linestyle="--")
    # what is useless is far off, and what matters is within a point
    axis.set_xscale("symlog", linthresh=1.0)
    axis.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axis.minorticks_off()
    least = min((row["own_minus_plain"]["mean"] for row in rows), default=0.0)
    axis.set_xlim(min(-1.2, 1.3 * least), 4)
    axis.set_xlabel("accuracy minus plain FedAvg's, points")
    axis.set_ylabel("aligned SSIM, strongest attacker")
    axis.set_ylim(-0.05, 1.05)


def _half(interval: dict) -> float | None:
    """Half of an interval's width; None of a single seed."""
    return None if interval["low"] is None else (interval["high"] - interval["low"]) / 2
