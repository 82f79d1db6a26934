"""Makes a report's charts: leakage and accuracy over rounds, and cost over steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..leakage import BASELINE, CostCurve, LeakageRow
from ..vocabulary import attack_name, attacker, defense_name
from ..wording import ends_of, mean_of
from .charts import Chart, Series

__all__ = ["accuracy_charts", "cost_charts", "leakage_charts"]

_MOST_IN_A_CHART = 12


def leakage_charts(rows: Sequence[LeakageRow]) -> list[Chart]:
    """For each attack that ran in several rounds, its aligned SSIM over them.

    Colours are defenses, and line styles the attackers' knowledge. The best baseline of public data
    alone is a constant line.

    Example:
        >>> def row(number, score):
        ...     metrics = {"ssim_aligned": {"mean": score, "low": None, "high": None, "n": 1}}
        ...     return LeakageRow("dlg", "none", "none", number, "trained", 1, metrics, {})
        >>> [chart.title for chart in leakage_charts([row(0, 0.9), row(3, 0.5)])]
        ['DLG']
        >>> leakage_charts([row(0, 0.9)])
        []

    """
    scored = [(row, mean_of(row.metrics.get("ssim_aligned"))) for row in rows]
    known = [(row, score) for row, score in scored if score is not None]
    attacked = [(row, score) for row, score in known if row.knowledge != BASELINE]
    floors = [score for row, score in known if row.knowledge == BASELINE]
    defenses = list(dict.fromkeys(row.defense for row, _ in attacked))
    levels = list(dict.fromkeys(row.knowledge for row, _ in attacked))
    charts = []
    for attack in dict.fromkeys(row.attack for row, _ in attacked):
        own = [row for row, _ in attacked if row.attack == attack]
        if len({row.round for row in own}) < 2:
            continue
        groups: dict[tuple[str, ...], list[LeakageRow]] = {}
        for row in own:
            key = (row.defense, row.knowledge)
            twice = sum((one.defense, one.knowledge, one.round) == (*key, row.round) for one in own)
            groups.setdefault(key if twice < 2 else (*key, row.stage), []).append(row)
        series = [
            _scores(
                ", ".join([_short(key[0]), attacker(key[1]).name, *key[2:]]),
                group,
                hue=defenses.index(key[0]),
                dash=levels.index(key[1]),
            )
            for key, group in groups.items()
        ]
        if floors:
            at = ((0.0, max(floors)),)
            series.append(Series("public data alone, no gradient", at, everywhere=True))
        charts.append(Chart(attack_name(attack), "round", "aligned SSIM", tuple(series)))
    return charts


def _scores(name: str, rows: Sequence[LeakageRow], *, hue: int, dash: int) -> Series:
    ordered = sorted(rows, key=lambda row: row.round)
    points, ends = [], []
    for row in ordered:
        interval = row.metrics["ssim_aligned"]
        points.append((float(row.round), float(mean_of(interval) or 0.0)))
        found = ends_of(interval)
        ends.append(found and (found[0], min(found[1], 1.0)))
    return Series(name, tuple(points), tuple(ends), hue, dash)


def accuracy_charts(
    rounds: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], roles: Mapping[str, str]
) -> list[Chart]:
    """The accuracy over the rounds: a colour for each defense, a line style for each role.

    The rounds are defense to role to ``(round, share)``; `roles` has the names of roles.

    Example:
        >>> chart, = accuracy_charts({"none": {"server": [(0, 0.1), (9, 0.9)]}}, {})
        >>> chart.words()
        'Accuracy by round. no defense, server: 10.0 % at round 0, 90.0 % at round 9.'

    """
    names = list(dict.fromkeys(role for measured in rounds.values() for role in measured))
    series = []
    for hue, (defense, measured) in enumerate(rounds.items()):
        for role, points in measured.items():
            known = sorted((float(x), float(y)) for x, y in points if math.isfinite(y))
            if known:
                name = f"{_short(defense)}, {roles.get(role, role)}"
                series.append(Series(name, tuple(known), (), hue, names.index(role)))
    return [Chart("Accuracy", "round", "Accuracy", tuple(series), percent=True)] if series else []


def cost_charts(curves: Sequence[CostCurve], attacks: Sequence[str]) -> list[Chart]:
    """The cost over the steps of each search: charts by attack, of at most twelve curves.

    A curve belongs to the attack that its title names between commas. The defense, first in the
    title, decides the colour.

    Example:
        >>> chart, = cost_charts([CostCurve("none, dlg", (0, 10), (1.0, 0.002))], ["dlg"])
        >>> chart.words()
        'DLG: cost by step. no defense: 1.00 at step 0, 2.0e-03 at step 10.'

    """
    groups: dict[str, list[Series]] = {}
    hues: dict[str, int] = {}
    dashes: dict[str, int] = {}
    for curve in curves:
        parts = curve.title.split(", ")
        attack = next((part for part in parts if part in attacks), "")
        first, *rest = [part for part in parts if part != attack] or [curve.title]
        hue = hues.setdefault(first, len(hues))
        dash = dashes.setdefault(", ".join(rest), len(dashes))
        found = zip(curve.steps, curve.cost, strict=True)
        points = tuple((float(x), float(y)) for x, y in found if math.isfinite(y))
        if points:
            name = ", ".join([_short(first), *([attacker(", ".join(rest)).name] if rest else [])])
            groups.setdefault(attack, []).append(Series(name, points, (), hue, dash))
    charts = []
    for attack, group in groups.items():
        for start in range(0, len(group), _MOST_IN_A_CHART):
            part = tuple(group[start : start + _MOST_IN_A_CHART])
            positive = all(y > 0 for one in part for _, y in one.points)
            which = f" ({start // _MOST_IN_A_CHART + 1})" if len(group) > len(part) else ""
            title = (attack_name(attack) or "all attacks") + which
            charts.append(Chart(title, "step", "cost", part, logarithmic=positive))
    return charts


def _short(defense: str) -> str:
    """A defense's name in a legend."""
    return defense_name(defense).split(" (")[0]
