"""The pages of reports: one file each, that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

from ..leakage import CostCurve, LeakageRow
from ..lpips import lpips_hint
from ..picture import data_uris
from ..verdict import BASELINE, judge
from ..wording import interval_text, mean_of, number
from .curves import accuracy_charts, cost_charts, leakage_charts
from .vocabulary import KNOWLEDGE, METRICS, ROLES, meaning_of, roles_of

__all__ = ["render", "report_page"]


def render(template: str, **content: Any) -> str:
    """A page from its template. Whatever it holds is escaped.

    Example:
        >>> render("compare.html.j2")
        Traceback (most recent call last):
        jinja2.exceptions.UndefinedError: 'comparison' is undefined

    """
    environment = Environment(
        loader=PackageLoader("fedml_keylock.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        interval=interval_text, mean=mean_of, number=number, meaning=meaning_of
    )
    return environment.get_template(template).render(**content)


def report_page(
    *,
    leakage: Sequence[LeakageRow],
    accuracy: Mapping[str, Mapping[str, Any]],
    accuracy_rounds: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]],
    costs: Sequence[CostCurve],
    job: Mapping[str, Any],
    originals: Tensor | None,
    galleries: Sequence[tuple[str, Tensor]],
    more_metrics: Sequence[str],
) -> str:
    """The page of a report.

    Args:
        leakage: its rows.
        accuracy: defense to role to interval.
        accuracy_rounds: defense to role to ``(round, share)``.
        costs: of the searches.
        job: what ran.
        originals: ``(n, c, h, w)`` on [0, 1]; None leaves all pictures out.
        galleries: title and ``(n, c, h, w)`` of the reconstructions.
        more_metrics: names beyond the usual ones.

    Example:
        >>> page = report_page(leakage=[], accuracy={}, accuracy_rounds={}, costs=[],
        ...     job={"seed": 0}, originals=None, galleries=[], more_metrics=[])
        >>> page.splitlines()[0]
        '<!doctype html>'

    """
    shown = data_uris(originals) if originals is not None else []
    measured = {name for row in leakage for name in row.metrics}
    # the last column is there without a number too, to say how it is had
    hint = None if {"lpips", "lpips_aligned"} & measured else lpips_hint()
    optional = {"lpips_aligned", "lpips"} - measured - ({"lpips"} if hint else set())
    metrics = {name: title for name, title in METRICS.items() if name not in optional}
    return render(
        "report.html.j2",
        leakage=leakage,
        accuracy=accuracy,
        verdict=judge(leakage, accuracy),
        roles={role: ROLES.get(role, role) for role in roles_of([accuracy])},
        metrics={**metrics, **{name: name for name in more_metrics}},
        seeds=any(row.seeds > 1 for row in leakage),
        lpips_hint=hint,
        baseline=BASELINE,
        levels={n: said for n, said in KNOWLEDGE.items() if any(r.knowledge == n for r in leakage)},
        accuracy_charts=accuracy_charts(accuracy_rounds, ROLES),
        leakage_charts=leakage_charts(leakage),
        cost_charts=cost_charts(costs, list(dict.fromkeys(row.attack for row in leakage))),
        pairs=[
            (title, list(zip(shown, data_uris(images), strict=True)))
            for title, images in galleries
            if shown
        ],
        left_out=originals is None and bool(galleries),
        job=job,
    )
