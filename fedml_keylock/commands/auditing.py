"""What `fedml-keylock audit` does with its options."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import yaml

from ..errors import AttackError
from ..evaluation.audit import Crew, audit
from ..evaluation.report import write_tensorboard
from ..inversion import Attack
from ..plugins import attack_of, manager, metrics
from .request import Request
from .subjects import captured, probes

__all__ = ["run_audit"]

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "inverting_gradients": {"steps": 500, "learning_rate": 0.2, "secret_learning_rate": 0.02},
    "dlg": {"steps": 50, "restarts": 2},
}
"""Settings with which an audit takes minutes; the sources' are longer (`--set` has them back)."""


def run_audit(request: Request, crew: Crew) -> Path:
    """Audit, write the report, and say what it says.

    Returns:
        The page's path.

    Raises:
        KeyLockError: in one line.

    """
    attacks = _attacks(request)
    levels = _listed(request.knowledge)
    made = captured if request.capture is not None else probes
    material = made(request)
    report = audit(
        material.subjects,
        attacks,
        levels,
        output=request.output,
        crew=crew,
        seeds=request.seeds,
        metrics=metrics(),
        job={
            "command": shlex.join(["fedml-keylock", *sys.argv[1:]]),
            "model": request.builder,
            **material.facts,
            "attacks": {name: _differs(name, request) for name in attacks},
            "versions": {p: version(p) for p in ("fedml-keylock", "torch")},
        },
        on_error=_tell,
        progress=True,
    )
    report = replace(report, accuracy=material.accuracy, accuracy_rounds=material.accuracy_rounds)
    paths = report.save(request.output, images=not request.no_images)
    write_tensorboard(report, request.output / "tensorboard")
    manager().hook.after_report(report=report.to_dict(), folder=str(request.output))
    page = next(path for path in paths if path.suffix == ".html")
    for text in (report.table(), "", report.verdict(), "", f"report: {page}"):
        click.echo(text)
    return page


def _attacks(request: Request) -> dict[str, Attack]:
    names = _listed(request.attacks)
    for field in request.fields:
        name, dot, rest = field.partition(".")
        if not (dot and "=" in rest) or name not in names:
            raise click.UsageError(
                f"--set {field}: not like {names[0]}.steps=500, with an attack of --attacks"
            )
    return {name: attack_of(name, _differs(name, request)) for name in names}


def _differs(name: str, request: Request) -> dict[str, Any]:
    """An attack's settings in this audit, where they are not its own."""
    settings = dict(DEFAULTS.get(name, {}))
    for field in request.fields:
        path, _, value = field.partition("=")
        attack, _, key = path.partition(".")
        if attack == name:
            settings[key] = yaml.safe_load(value)
    return settings


def _listed(words: str) -> list[str]:
    listed = [word.strip() for word in words.split(",") if word.strip()]
    if not listed:
        raise click.UsageError("--attacks and --knowledge need at least one name")
    return listed


def _tell(attack: str, error: AttackError) -> None:
    click.echo(f"fedml-keylock: {attack}: {error}", err=True)
    manager().hook.on_attack_error(attack=attack, error=error)
