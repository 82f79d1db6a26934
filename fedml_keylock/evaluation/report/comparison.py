"""Compares two reports side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..vocabulary import ROLES, roles_of
from ..wording import columns, ends_of, interval_text, joined, mean_of
from .page import render
from .writing import write_all

__all__ = ["Comparison", "Pair", "compare"]

_KEY = ("defense", "attack", "knowledge", "stage", "round")


@dataclass(frozen=True)
class Pair:
    """One measurement as two reports have it.

    Attributes:
        key: for leakage: defense, attack, knowledge, stage, round, and the index among equal rows;
            for accuracy: defense and role.
        a, b: the intervals; None if that report has none.
        in_a, in_b: whether that report has the row at all.

    Example:
        >>> one = Pair(("none",), {"mean": 0.5, "low": 0.4, "high": 0.6}, {"mean": 0.7}, True, True)
        >>> round(one.difference, 2), one.said
        (0.2, 'no interval')

    """

    key: tuple[Any, ...]
    a: Mapping[str, Any] | None
    b: Mapping[str, Any] | None
    in_a: bool
    in_b: bool

    @property
    def difference(self) -> float | None:
        """B's mean minus A's."""
        a, b = mean_of(self.a), mean_of(self.b)
        return None if a is None or b is None else b - a

    @property
    def said(self) -> str:
        """Whether the intervals overlap, in words; or which report alone has the row."""
        if not (self.in_a and self.in_b):
            return "only in A" if self.in_a else "only in B"
        if self.difference is None:
            return "not measured"
        a, b = ends_of(self.a), ends_of(self.b)
        if a is None or b is None:
            return "no interval"
        return "overlap" if a[0] <= b[1] and b[0] <= a[1] else "apart"


@dataclass(frozen=True)
class Comparison:
    """The comparison of two reports.

    Attributes:
        names: names of A and B, as given.
        leakage: the aligned SSIM of every row.
        accuracy: the accuracy of every defense and role.
        verdicts: the verdicts of A and B, in lines.
        jobs: facts on the runs of A and B.

    """

    names: tuple[str, str]
    leakage: Sequence[Pair]
    accuracy: Sequence[Pair]
    verdicts: tuple[list[str], list[str]]
    jobs: tuple[Mapping[str, Any], Mapping[str, Any]]

    def summary(self) -> str:
        """Text on how many intervals overlap, and which rows only one report has."""
        said = [_counted("Accuracies", self.accuracy), _counted("Aligned SSIMs", self.leakage)]
        if any(pair.said in ("overlap", "apart") for pair in (*self.leakage, *self.accuracy)):
            said.append(
                "Intervals that overlap do not show that the runs are alike, and intervals apart "
                "are no test of significance: each is of its own run's images or silos."
            )
        for name, side in (("A", "only in A"), ("B", "only in B")):
            rows = [_title(pair) for pair in (*self.accuracy, *self.leakage) if pair.said == side]
            if rows:
                shown = [*rows[:8], f"{len(rows) - 8} more"] if len(rows) > 9 else rows
                said.append(f"Only {name} has {joined(shown)}.")
        return " ".join(filter(None, said))

    def table(self) -> str:
        """Accuracy, leakage and the summary, as plain text of at most 100 columns."""
        parts = [f"A: {self.names[0]}\nB: {self.names[1]}"]
        if self.accuracy:
            lines = [["Accuracy", "role", "A", "B", "B - A", "intervals"]]
            for pair in self.accuracy:
                texts = [interval_text(one, percent=True) for one in (pair.a, pair.b)]
                lines.append([*pair.key, *texts, self.points(pair), pair.said])
            parts.append(columns(lines))
        if self.leakage:
            lines = [["Leakage", "knowledge", "A", "B", "B - A", "intervals"]]
            places = dict.fromkeys(_place(pair) for pair in self.leakage)
            for place in sorted(places, key=lambda place: place[0] != "none"):
                lines.append(["{}, {} weights, round {}".format(*place)])
                for pair in self.leakage:
                    if _place(pair) == place:
                        _, attack, knowledge, _, _, which = pair.key
                        name = f"  {attack}" + (f" ({which + 1})" if which else "")
                        texts = [interval_text(one, most=1.0) for one in (pair.a, pair.b)]
                        lines.append([name, knowledge, *texts, self.score(pair), pair.said])
            parts.append(columns(lines))
        return "\n\n".join([*parts, self.summary()])

    @staticmethod
    def score(pair: Pair) -> str:
        """A difference of scores: "+0.12"."""
        return "-" if pair.difference is None else f"{pair.difference:+.2f}"

    @staticmethod
    def points(pair: Pair) -> str:
        """A difference of shares, in percentage points: "-1.5"."""
        return "-" if pair.difference is None else f"{100 * pair.difference:+.1f}"

    def html(self) -> str:
        """The comparison as a self-contained page."""
        keys = list(dict.fromkeys([*self.jobs[0], *self.jobs[1]]))
        return render("compare.html.j2", comparison=self, keys=keys, roles=ROLES)

    def save(self, path: Path) -> None:
        """Write the page, whole or not at all; ConfigError if it cannot be written."""
        write_all(path.parent, {path: self.html().encode()})


def compare(
    a: Mapping[str, Any], b: Mapping[str, Any], names: tuple[str, str] = ("A", "B")
) -> Comparison:
    """Compare two reports, as ``read_report`` returns them.

    Example:
        >>> of = lambda mean: {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "n": 3}
        >>> def report(share):
        ...     accuracy = {"none": {"server": of(share)}}
        ...     return {"accuracy": accuracy, "leakage": [], "verdict": "", "job": {}}
        >>> print(compare(report(0.9), report(0.8)).table())  # doctest: +ELLIPSIS
        A: A
        B: B
        <BLANKLINE>
        Accuracy  role    A                    B                    B - A  intervals
        none      server  90.0 % [89.0, 91.0]  80.0 % [79.0, 81.0]  -10.0  apart
        <BLANKLINE>
        Accuracies in both: 1; intervals apart: 1, overlapping: 0. Intervals that overlap...

    """
    rows = [dict(_rows(one["leakage"])) for one in (a, b)]
    shares = [dict(_shares(one["accuracy"])) for one in (a, b)]
    return Comparison(
        names=names,
        leakage=_paired(*rows),
        accuracy=_paired(*shares),
        verdicts=(a["verdict"].splitlines(), b["verdict"].splitlines()),
        jobs=(a["job"], b["job"]),
    )


def _rows(leakage: Sequence[Mapping[str, Any]]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    seen: dict[tuple[Any, ...], int] = {}
    for row in leakage:
        key = tuple(row[name] for name in _KEY)
        seen[key] = seen.get(key, -1) + 1
        yield (*key, seen[key]), row.get("ssim_aligned")


def _shares(accuracy: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    for defense, measured in accuracy.items():
        for role in roles_of(accuracy):
            if role in measured:
                yield (defense, ROLES.get(role, role)), measured[role]


def _paired(a: Mapping[tuple[Any, ...], Any], b: Mapping[tuple[Any, ...], Any]) -> list[Pair]:
    return [
        Pair(key, a.get(key), b.get(key), key in a, key in b) for key in dict.fromkeys([*a, *b])
    ]


def _counted(what: str, pairs: Sequence[Pair]) -> str:
    both = [pair.said for pair in pairs if pair.in_a and pair.in_b]
    if not pairs:
        return ""
    apart, overlap = both.count("apart"), both.count("overlap")
    rest = len(both) - apart - overlap
    text = f"{what} in both: {len(both)}; intervals apart: {apart}, overlapping: {overlap}"
    return text + (f", not known: {rest}." if rest else ".")


def _place(pair: Pair) -> tuple[Any, ...]:
    """Defense, stage and round of a leakage row."""
    return (pair.key[0], pair.key[3], pair.key[4])


def _title(pair: Pair) -> str:
    return ", ".join(str(part) for part in pair.key[:5])
