"""What has been run, beside what was published."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cells import DATA, SETTINGS, SIZES, Cell

ROLES = {"central": "test", "central+lock": "test", "fedavg": "server", "fedavg+lock": "own lock"}
"""Whose accuracy a cell's is."""
NOTE = (
    "Test accuracy in per cent after the last round or epoch, never the best one; with several "
    "seeds their mean ± half their range. Under FedAvg with the lock it is the mean over silos, "
    "each under its own lock; *without a key* is the same global model as the server has it. "
    "Published: arXiv 2305.04095, 200 rounds."
)


def results(folder: Path) -> list[dict[str, Any]]:
    """A cell's results, one for each seed."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("seed-*.json"))]


def last(found: list[dict[str, Any]], role: str) -> list[float]:
    """The final accuracy of each seed, in per cent."""
    return [100 * x["accuracy"][role][-1][1] for x in found if role in x["accuracy"]]


def spread(values: list[float]) -> str:
    """One number, or the mean of several and half their range."""
    if not values:
        return "-"
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.2f}"
    return f"{mean:.2f} ± {(max(values) - min(values)) / 2:.2f}"


def published(cell: Cell) -> str:
    return "-" if cell.published is None else f"{cell.published:.2f}"


def line(cell: Cell, output: Path) -> str:
    """A cell in one line: what was published, and what it came to here."""
    found = results(output / cell.name)
    here = spread(last(found, ROLES[cell.setting]))
    said = f"{cell.model:9} {cell.data:13} {cell.setting:13} {published(cell):>9} {here:>14}"
    if not found:
        begun = (output / cell.name).exists()
        return f"{said}  {'begun' if begun else 'not run'}"
    settings = found[0]["settings"]
    said += f"  {len(found)} seed{'s'[: len(found) > 1]}, {settings['rounds']} rounds"
    if settings["train_images"]:
        said += f" of {settings['train_images']} pictures"
    if cell.setting == "fedavg+lock":
        said += f", {spread(last(found, 'server'))} without a key"
    return said


def head() -> str:
    """What `line` shows."""
    return f"{'model':9} {'data':13} {'setting':13} {'published':>9} {'here':>14}"


def table(cells: Iterable[Cell], output: Path) -> str:
    """The cells that have been run, as a page of Markdown."""
    rows = [
        f"# Accuracy\n\n`python run.py`, in this folder. {NOTE}\n",
        "| model | data | setting | published | here | without a key | seeds | rounds | pictures "
        "trained on | device | minutes a seed |",
        "|---" * 11 + "|",
    ]
    for cell in cells:
        found = results(output / cell.name)
        if not found:
            continue
        settings = found[0]["settings"]
        bare = spread(last(found, "server")) if cell.setting == "fedavg+lock" else "-"
        minutes = sum(x["seconds"] for x in found) / len(found) / 60
        rows.append(
            f"| {cell.model} | {cell.data} | {cell.setting} | {published(cell)} | "
            f"**{spread(last(found, ROLES[cell.setting]))}** | {bare} | {len(found)} | "
            f"{settings['rounds']} | {settings['train_images'] or 'all'} | "
            f"{', '.join(sorted({x['device'] for x in found}))} | {minutes:.1f} |"
        )
    return "\n".join(rows) + "\n"


def every() -> list[Cell]:
    """All cells that can be run, in the order of the paper's table."""
    return [Cell(m, d, s) for m in SIZES for d in DATA for s in SETTINGS]
