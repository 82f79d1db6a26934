"""A leakage report: what is in it, and what is made of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import ConfigError
from ..leakage import CostCurve, LeakageRow
from ..picture import check_images, overview_png
from ..verdict import BASELINE, judge
from ..wording import columns, interval_text, mean_of, number
from .page import report_page
from .reading import SCHEMA
from .spreadsheet import leakage_csv
from .vocabulary import METRICS, ROLES, roles_of
from .writing import remove, write_all

__all__ = ["Gallery", "LeakageReport"]


@dataclass(frozen=True)
class Gallery:
    """The reconstructions of the report's originals by one attack.

    Attributes:
        title: "keylock:paper:all, inverting_gradients, adaptive".
        images: ``(n, c, h, w)`` on [0, 1], in the order of the originals.

    Raises:
        ConfigError: they are not images, or a pixel is not finite.

    """

    title: str
    images: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        check_images(f"gallery {self.title!r}", self.images)


@dataclass(frozen=True)
class LeakageReport:
    """What leaked, and what that cost in accuracy.

    Attributes:
        accuracy: defense to role to interval, 0 to 1. Roles: "own_lock", over the silos;
            "fresh_lock", a random one; "server", the model without a lock.
        leakage: the rows, undefended ones and baselines among them.
        originals: ``(n, c, h, w)`` on [0, 1]; n is 0 if nothing was attacked.
        galleries: their reconstructions, each ``(n, c, h, w)``.
        job: what ran, in plain values: data, model, rounds, silos, seed, seconds, versions,
            command.
        costs: how each attack's search went.
        accuracy_rounds: defense to role to ``(round, share)``, 0 to 1.

    Raises:
        ConfigError: the pictures do not fit together, or ``job`` holds what JSON does not know.

    Example:
        >>> import tempfile, torch
        >>> of = lambda mean: {"mean": mean, "low": None, "high": None, "n": 1}
        >>> row = LeakageRow("dlg", "none", "none", 0, "untrained", 1,
        ...     {"ssim_aligned": of(0.9), "psnr_aligned": of(31.0)}, of(1e-5))
        >>> picture = torch.rand(1, 1, 16, 16)
        >>> report = LeakageReport({"none": {"server": of(0.97)}}, [row], picture,
        ...     [Gallery("none, dlg", picture)], {"seed": 0})
        >>> print(report.verdict().splitlines()[1][:31])
        none: leaks. The images come ba
        >>> [path.name for path in report.save(Path(tempfile.mkdtemp()))]
        ['report.json', 'report.html', 'leakage.png', 'leakage.csv']
        >>> [path.name for path in report.save(Path(tempfile.mkdtemp()), images=False)]
        ['report.json', 'report.html', 'leakage.csv']

    """

    accuracy: Mapping[str, Mapping[str, Any]]
    leakage: Sequence[LeakageRow]
    originals: Tensor = field(repr=False)
    galleries: Sequence[Gallery] = field(repr=False)
    job: Mapping[str, Any]
    costs: Sequence[CostCurve] = ()
    accuracy_rounds: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        check_images("originals", self.originals)
        for gallery in self.galleries:
            if len(gallery.images) != len(self.originals):
                raise ConfigError(
                    f"gallery {gallery.title!r} has {len(gallery.images)} images and there are "
                    f"{len(self.originals)} originals"
                )
        _plain(self.job, "job")

    def verdict(self) -> str:
        """A paragraph on the attacks, and a line for each defense: its light and the reason."""
        return str(judge(self.leakage, self.accuracy))

    def to_dict(self) -> dict[str, Any]:
        """What ``report.json`` holds: strict JSON, in which a number that is not finite is null."""
        rows = []
        for row in self.leakage:
            own = {k: v for k, v in vars(row).items() if k not in ("metrics", "cost")}
            scores = {name: row.metrics.get(name) for name in (*METRICS, *self._extra())}
            rows.append({**own, **scores, **own, "cost": row.cost or None})
        content: dict[str, Any] = {"accuracy": self.accuracy, "leakage": rows}
        content |= {"accuracy_rounds": self.accuracy_rounds, "costs": [vars(c) for c in self.costs]}
        content |= {"verdict": self.verdict(), "job": self.job}
        return dict(_plain({"schema": SCHEMA, **content}, "report"))

    def table(self) -> str:
        """Accuracy, then leakage, as plain text of at most 100 columns.

        Example:
            >>> import torch
            >>> accuracy = {"none": {"server": {"mean": 0.97, "low": 0.96, "high": 0.98, "n": 3}}}
            >>> print(LeakageReport(accuracy, [], torch.rand(0, 1, 8, 8), [], {}).table())
            Accuracy  server
            none      97.0 % [96.0, 98.0]

        """
        roles = roles_of([self.accuracy])
        lines = [["Accuracy", *(ROLES.get(role, role) for role in roles)]]
        for defense, measured in self.accuracy.items():
            shares = [interval_text(measured.get(role), percent=True) for role in roles]
            lines.append([defense, *shares])
        parts = [columns(lines)] if self.accuracy else []
        head = ["Leakage", "knowledge", "round", "weights", "n", "SSIM aligned", "dB", "labels"]
        lines = [[*head, "cost"]]
        for defense, rows in self._groups().items():
            lines += [[defense], *map(_terminal, rows)]
        parts += [columns(lines)] if self.leakage else []
        return "\n\n".join(parts)

    def save(self, folder: Path, images: bool = True) -> list[Path]:
        """Write the report, each file whole or not at all.

        Args:
            folder: made if it is not there. Earlier reports in it are replaced.
            images: whether silos' images, and what was reconstructed of them, go into the files.
                Without them there is no ``leakage.png``, and an earlier one is removed.

        Returns:
            The paths of ``report.json``, ``report.html``, ``leakage.png`` and ``leakage.csv``.

        Raises:
            ConfigError: a file cannot be written. None of them is there in part.

        """
        content = _lines_of_numbers(json.dumps(self.to_dict(), indent=1, allow_nan=False))
        contents = {
            folder / "report.json": f"{content}\n".encode(),
            folder / "report.html": self.html(images=images).encode(),
        }
        picture = folder / "leakage.png"
        if images:
            rows = [(gallery.title, gallery.images) for gallery in self.galleries]
            contents[picture] = overview_png(self.originals, rows)
        names = [*METRICS, *self._extra()]
        contents[folder / "leakage.csv"] = leakage_csv(self.leakage, names).encode()
        write_all(folder, contents)
        if not images:
            remove(picture)
        return list(contents)

    def html(self, images: bool = True) -> str:
        """The page: one file that needs nothing else, pictures and all.

        Args:
            images: whether silos' images, and what was reconstructed of them, are in it.

        """
        galleries = [(gallery.title, gallery.images) for gallery in self.galleries]
        return report_page(
            leakage=self.leakage,
            accuracy=self.accuracy,
            accuracy_rounds=self.accuracy_rounds,
            costs=self.costs,
            job=_plain(self.job, "job"),
            originals=self.originals if images else None,
            galleries=galleries,
            more_metrics=self._extra(),
        )

    def _extra(self) -> list[str]:
        """Metrics beyond the usual ones, as plugins bring them."""
        found = {name for row in self.leakage for name in row.metrics}
        return sorted(found - set(METRICS))

    def _groups(self) -> dict[str, list[LeakageRow]]:
        groups: dict[str, list[LeakageRow]] = {}
        for row in self.leakage:
            name = BASELINE if row.knowledge == BASELINE else row.defense
            groups.setdefault(name, []).append(row)
        return groups


def _terminal(row: LeakageRow) -> list[str]:
    get = row.metrics.get
    decibels, labels = mean_of(get("psnr_aligned")), mean_of(get("label_accuracy"))
    return [
        f"  {row.attack}",
        "" if row.knowledge == BASELINE else row.knowledge,
        str(row.round),
        row.stage,
        str(row.images),
        interval_text(get("ssim_aligned"), most=1.0),
        "-" if decibels is None else f"{decibels:.1f}",
        "-" if labels is None else f"{100 * labels:.0f} %",
        number(mean_of(row.cost)),
    ]


def _plain(value: Any, name: str) -> Any:
    """Plain JSON values; numbers that are not finite become None."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, name) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (int, float)):
        return value if math.isfinite(value) else None
    raise ConfigError(
        f"{name}: a {type(value).__name__} cannot stand in a report; use plain values"
    )


def _lines_of_numbers(text: str) -> str:
    """Indented JSON with each list of numbers in one line. A string holds no line break."""
    return re.sub(r"\[\n[^\"\[\]{}]*\]", lambda found: re.sub(r"\s+", "", found[0]), text)
