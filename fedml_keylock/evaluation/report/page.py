"""The pages of reports: one file each, that needs nothing else."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..leakage import BASELINE
from ..lpips import lpips_hint
from ..picture import data_uris
from ..verdict import judge
from ..wording import interval_text, mean_of, number
from .contents import Contents, plain_values
from .curves import accuracy_charts, cost_charts, leakage_charts
from .vocabulary import KNOWLEDGE, METRICS, OF_SUMS, ROLES, meaning_of, roles_of

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


def report_page(report: Contents, *, images: bool) -> str:
    """The page of a report, with its pictures or without.

    Example:
        >>> import torch
        >>> page = report_page(Contents({}, [], torch.rand(0, 1, 8, 8), [], {}), images=False)
        >>> page.splitlines()[0]
        '<!doctype html>'

    """
    leakage, accuracy = report.leakage, report.accuracy
    shown = data_uris(report.originals) if images else []
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
        roles={role: ROLES.get(role, role) for role in roles_of(accuracy)},
        metrics={**metrics, **{name: name for name in report.more_metrics}},
        seeds=any(row.seeds > 1 for row in leakage),
        lpips_hint=hint,
        baseline=BASELINE,
        levels={
            name: said
            for name, said in {**KNOWLEDGE, **OF_SUMS}.items()
            if any(row.knowledge.startswith(name) for row in leakage)
        },
        accuracy_charts=accuracy_charts(report.accuracy_rounds, ROLES),
        leakage_charts=leakage_charts(leakage),
        cost_charts=cost_charts(report.costs, list(dict.fromkeys(row.attack for row in leakage))),
        pairs=[
            (gallery.title, list(zip(shown, data_uris(gallery.images), strict=True)))
            for gallery in report.galleries
            if shown
        ],
        left_out=not images and bool(report.galleries),
        job=plain_values(report.job, "job"),
    )
