"""Runs `fedml-keylock audit` with its parsed options."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click

from ..errors import AttackError
from ..evaluation.audit import Crew, Subject, audit
from ..evaluation.audit.average import in_average
from ..evaluation.capture import INDEX
from ..evaluation.provenance import data_hash, file_hash, today, versions
from ..evaluation.report.dossier import ATTACKS_NOT_RUN
from ..inversion import Attack
from ..plugins import manager, metrics, registered
from .attacking import differs
from .request import Request
from .subjects import captured, probes

__all__ = ["run_audit"]

PROBED = 3
"""Silos in an average if there is no job."""


def run_audit(
    request: Request,
    attacks: Mapping[str, Attack],
    levels: Sequence[str],
    sums: Sequence[int],
    crew: Crew,
) -> Path:
    """Audit as requested, write the report, and print its verdict.

    Attacks by name, levels of knowledge and sizes of sums are those of the request. Returns the
    page's path.
    """
    made = captured if request.capture is not None else probes
    material = made(request)
    every = material.subjects
    first = every if isinstance(every, Subject) else every[0]
    if first.loss.assumed:
        click.echo(f"fedml-keylock: --loss: {first.loss.name} is assumed", err=True)
    # updates of a model without a job count as those of a round of this many silos
    averages = in_average(first, silos=PROBED if request.capture is None else None)
    report = audit(
        material.subjects,
        attacks,
        levels,
        sums=sums,
        output=request.output,
        crew=crew,
        seeds=request.seeds,
        metrics=metrics(),
        job={
            "command": shlex.join(["fedml-keylock", *sys.argv[1:]]),
            "model": request.builder,
            **material.facts,
            "attacks": {name: differs(name, request) for name in attacks},
            **averages,
            ATTACKS_NOT_RUN: [
                n.name for n in registered(kinds=["attacks"]) if n.name not in attacks
            ],
            "knowledge": list(levels),
            "date": today(),
            "inputs": _inputs(request, first),
            "versions": versions(),
        },
        on_error=_tell,
        progress=True,
    )
    report = replace(report, accuracy=material.accuracy, accuracy_rounds=material.accuracy_rounds)
    report.save(request.output, images=not request.no_images)
    manager().hook.after_report(report=report.to_dict(), folder=str(request.output))
    page = request.output / "report.html"
    told = [f"{title}: {said}" for title, said in averages.items()]
    for text in (report.table(), *told, "", report.verdict(), "", f"report: {page}"):
        click.echo(text)
    return page


def _inputs(request: Request, subject: Subject) -> dict[str, str]:
    """SHA-256 of the inputs. A capture's index holds the hashes of all its files."""
    index = request.capture / INDEX if request.capture is not None else None
    files = {"weights": request.weights, "truth": request.truth, "capture's index": index}
    files["config"] = request.config
    found = {name: file_hash(path) for name, path in files.items() if path is not None}
    found["pictures attacked, with labels"] = data_hash(subject.images, subject.labels)
    if subject.public is not None:
        public = data_hash(subject.public.images, subject.public.labels)
        found["public pictures, with labels"] = public
    return found


def _tell(attack: str, error: AttackError) -> None:
    click.echo(f"fedml-keylock: {attack}: {error}", err=True)
    manager().hook.on_attack_error(attack=attack, error=error)
