"""A leakage report, and its forms: JSON, a table, a page and files."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..leakage import BASELINE, NOT_SCORED, LeakageRow
from ..outcome import outcomes
from ..picture import overview_png
from ..verdict import judge
from ..vocabulary import METRICS, ROLES, roles_of, title_words
from ..wording import columns, interval_text, mean_of, number
from .contents import Contents, plain_values
from .dossier import lost_text
from .page import report_page
from .reading import SCHEMA
from .spreadsheet import leakage_csv
from .writing import remove, write_all

__all__ = ["LeakageReport"]


@dataclass(frozen=True)
class LeakageReport(Contents):
    """A readable leakage report: see ``Contents`` for the fields.

    Example:
        >>> import tempfile, torch
        >>> from .contents import Gallery
        >>> of = lambda mean: {"mean": mean, "low": None, "high": None, "n": 1}
        >>> row = LeakageRow("dlg", "none", "none", 0, "untrained", 1,
        ...     {"ssim_aligned": of(0.9), "psnr_aligned": of(31.0)}, of(1e-5))
        >>> picture = torch.rand(1, 1, 16, 16)
        >>> report = LeakageReport({"none": {"server": of(0.97)}}, [row], picture,
        ...     [Gallery("none, dlg", picture)], {"seed": 0})
        >>> print(report.verdict().splitlines()[1][:40])
        no defense (undefended baseline): leaks.
        >>> [path.name for path in report.save(Path(tempfile.mkdtemp()))]
        ['report.json', 'report.html', 'leakage.png', 'leakage.csv']
        >>> [path.name for path in report.save(Path(tempfile.mkdtemp()), images=False)]
        ['report.json', 'report.html', 'leakage.csv']

    """

    def verdict(self) -> str:
        """A paragraph on the attacks, and for each defense a line with its light and the reason."""
        return str(judge(self.leakage, self.accuracy))

    def to_dict(self) -> dict[str, Any]:
        """The contents of ``report.json``: strict JSON, with null for non-finite numbers."""
        rows = []
        for row in self.leakage:
            own = {k: v for k, v in vars(row).items() if k not in ("metrics", "cost", "worst")}
            scores = {name: row.metrics.get(name) for name in (*METRICS, *self.more_metrics)}
            last = {"cost": row.cost or None, "worst": row.worst}
            rows.append({**own, **scores, **own, **last})
        content: dict[str, Any] = {"accuracy": self.accuracy, "leakage": rows}
        content |= {"accuracy_rounds": self.accuracy_rounds, "costs": [vars(c) for c in self.costs]}
        content |= {"verdict": self.verdict(), "job": self.job}
        return dict(plain_values({"schema": SCHEMA, **content}, "report"))

    def table(self) -> str:
        """Outcomes, accuracy and leakage, as plain text of at most 100 columns.

        Example:
            >>> import torch
            >>> accuracy = {"none": {"server": {"mean": 0.97, "low": 0.96, "high": 0.98, "n": 3}}}
            >>> print(LeakageReport(accuracy, [], torch.rand(0, 1, 8, 8), [], {}).table())
            Accuracy  server
            none      97.0 % [96.0, 98.0]

        """
        parts = []
        if groups := outcomes(self.leakage):
            lines = [["Attacker", "SSIM aligned", "verdict"]]
            for group in groups:
                lines.append([group.name])
                lines += [[f"  {one.attacker}", one.score, one.verdict] for one in group.lines]
            parts.append(columns(lines))
        roles = roles_of(self.accuracy)
        lines = [["Accuracy", *(ROLES.get(role, role) for role in roles)]]
        for defense, measured in self.accuracy.items():
            shares = [interval_text(measured.get(role), percent=True) for role in roles]
            lines.append([defense, *shares])
        parts += [columns(lines)] if self.accuracy else []
        head = ["Leakage", "knowledge", "round", "weights", "n", "SSIM aligned", "dB", "labels"]
        lines = [[*head, "cost"]]
        for defense, rows in self._groups().items():
            lines += [[defense], *map(_terminal, rows)]
        parts += [columns(lines)] if self.leakage else []
        lost = dict(self.job.get(NOT_SCORED) or {})
        if lost:
            said = "; ".join(lost_text(title, count) for title, count in lost.items())
            parts.append(f"Not scored, as no search gave a picture: {said}.")
        return "\n\n".join(parts)

    def save(self, folder: Path, images: bool = True) -> list[Path]:
        """Write ``report.json``, ``report.html``, ``leakage.png`` and ``leakage.csv``.

        The folder is made if it is missing; earlier reports in it are replaced. Without `images` no
        file has silos' or reconstructed images: there is no ``leakage.png``, and an earlier one is
        removed. Returns the files' paths.

        Raises:
            ConfigError: a file cannot be written. No file is left incomplete.

        """
        content = _lines_of_numbers(json.dumps(self.to_dict(), indent=1, allow_nan=False))
        contents = {
            folder / "report.json": f"{content}\n".encode(),
            folder / "report.html": self.html(images=images).encode(),
        }
        picture = folder / "leakage.png"
        if images:
            rows = [(title_words(one.title), one.images) for one in self.galleries]
            contents[picture] = overview_png(self.originals, rows)
        names = [*METRICS, *self.more_metrics]
        contents[folder / "leakage.csv"] = leakage_csv(self.leakage, names).encode()
        write_all(folder, contents)
        if not images:
            remove(picture)
        return list(contents)

    def html(self, images: bool = True) -> str:
        """The report as a self-contained page.

        Without `images` it has neither silos' images nor reconstructions.
        """
        return report_page(self, images=images)

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
        "" if row.knowledge == BASELINE else row.knowledge.replace("colluding silo, ", ""),
        str(row.round),
        row.stage,
        str(row.images),
        interval_text(get("ssim_aligned"), most=1.0),
        "-" if decibels is None else f"{decibels:.1f}",
        "-" if labels is None else f"{100 * labels:.0f} %",
        number(mean_of(row.cost)),
    ]


def _lines_of_numbers(text: str) -> str:
    """Indented JSON with each list of numbers on one line. Strings hold no line break."""
    return re.sub(r"\[\n[^\"\[\]{}]*\]", lambda found: re.sub(r"\s+", "", found[0]), text)
