"""Renders reports as self-contained pages."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..leakage import BASELINE, NOT_SCORED
from ..lpips import lpips_hint
from ..outcome import outcomes
from ..picture import data_uris
from ..verdict import judge
from ..vocabulary import (
    GOAL,
    METRICS,
    ROLES,
    STAGE,
    attack_name,
    attacker,
    defense_name,
    roles_of,
    title_words,
)
from ..wording import interval_text, mean_of, number
from .contents import Contents
from .curves import accuracy_charts, cost_charts, leakage_charts
from .dossier import dossier, lost_text
from .front import columns_of

__all__ = ["render", "report_page"]


def render(template: str, **content: Any) -> str:
    """Render a page from its template, with all values escaped.

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
        interval=interval_text,
        mean=mean_of,
        number=number,
        defense=defense_name,
        attacker=attacker,
        attack=attack_name,
    )
    return environment.get_template(template).render(**content)


def report_page(report: Contents, *, images: bool) -> str:
    """Render a report's page, with its pictures or without.

    Example:
        >>> import torch
        >>> page = report_page(Contents({}, [], torch.rand(0, 1, 8, 8), [], {}), images=False)
        >>> page.splitlines()[0]
        '<!doctype html>'

    """
    leakage, accuracy = report.leakage, report.accuracy
    shown = data_uris(report.originals) if images else []
    measured = {name for row in leakage for name in row.metrics}
    # the last column is kept without numbers, to say how to get them
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
        outcomes=outcomes(leakage),
        columns=_front(report) if images else [],
        goal=GOAL,
        learning_stage=STAGE,
        lost=[lost_text(*one) for one in dict(report.job.get(NOT_SCORED) or {}).items()],
        file=dossier(report),
        accuracy_charts=accuracy_charts(report.accuracy_rounds, ROLES),
        leakage_charts=leakage_charts(leakage),
        cost_charts=cost_charts(report.costs, list(dict.fromkeys(row.attack for row in leakage))),
        pairs=[
            (title_words(gallery.title), list(zip(shown, data_uris(gallery.images), strict=True)))
            for gallery in report.galleries
            if shown
        ],
        left_out=not images and bool(report.galleries),
        command=report.job.get("command"),
    )


def _front(report: Contents) -> list[tuple[str, str, list[str]]]:
    """Heading, caption and pictures of each opening column."""
    made = columns_of(report.originals, report.galleries, report.leakage)
    return [(one.heading, one.caption, data_uris(one.images)) for one in made]
