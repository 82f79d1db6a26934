"""A report's numbers for TensorBoard."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path

from ..wording import mean_of
from .document import LeakageReport

__all__ = ["scalars", "write_tensorboard"]


def write_tensorboard(report: LeakageReport, folder: Path) -> bool:
    """Write a report's numbers as TensorBoard's events; False if TensorBoard is not installed.

    No picture is written. The folder is made if it is not there.

    Example:
        >>> import torch
        >>> accuracy = {"none": {"server": {"mean": 0.9}}}
        >>> report = LeakageReport(accuracy, [], torch.rand(0, 1, 8, 8), [], {})
        >>> write_tensorboard(report, Path("events")) == any(Path().glob("events/events.*"))
        True

    """
    if importlib.util.find_spec("tensorboard") is None:
        return False
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for tag, value, step in scalars(report):
            writer.add_scalar(tag, value, step)
    return True


def scalars(report: LeakageReport) -> Iterator[tuple[str, float, int]]:
    """Tag, value and step of every number: a leakage's step is its round, a cost's its search's.

    Example:
        >>> import torch
        >>> accuracy = {"none": {"server": {"mean": 0.9}}}
        >>> list(scalars(LeakageReport(accuracy, [], torch.rand(0, 1, 8, 8), [], {})))
        [('accuracy/none/server', 0.9, 0)]

    """
    for row in report.leakage:
        start = f"leakage/{row.defense}/{row.attack}/{row.knowledge}/{row.stage}"
        for name, interval in {**row.metrics, "cost": row.cost}.items():
            if (value := mean_of(interval)) is not None:
                yield f"{start}/{name}", value, row.round
    for defense, measured in report.accuracy_rounds.items():
        for role, points in measured.items():
            for place, share in points:
                if math.isfinite(share):
                    yield f"accuracy_rounds/{defense}/{role}", share, place
    for defense, final in report.accuracy.items():
        for role, interval in final.items():
            if (value := mean_of(interval)) is not None:
                yield f"accuracy/{defense}/{role}", value, 0
    for curve in report.costs:
        for step, cost in zip(curve.steps, curve.cost, strict=True):
            if math.isfinite(cost):
                yield f"cost/{curve.title}", cost, step
