"""The report's section for auditors: what was tested and what was not, in the order they ask.

For a model trained on personal data, EDPB Opinion 28/2024 asks for the likelihood of extraction by
all means reasonably likely to be used, and for documentation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...inversion.levels import LEVELS
from ..evidence import count_text
from ..leakage import BASELINE, NOT_SCORED, ORACLE, SUM, UNDEFENDED, LeakageRow
from ..vocabulary import GOAL, STAGE, attack_name, attacker, colludes, title_words
from ..wording import digits, joined
from .contents import Contents, plain_values

__all__ = ["ATTACKS_NOT_RUN", "Dossier", "Means", "dossier", "lost_text", "untested"]

ATTACKS_NOT_RUN = "attacks not run"
"""Key in a report's job: installed attacks that were not selected."""
_APART = ("command", "versions", "inputs", "not run", NOT_SCORED, ATTACKS_NOT_RUN)


@dataclass(frozen=True)
class Means:
    """One attacker that was tried.

    Attributes:
        name: the attacker in words.
        does: what the attacker knows and does.
        labels: goal, knowledge and stage, as NIST AI 100-2e2025 names them.
        effort: attacks, pictures and runs.

    """

    name: str
    does: str
    labels: tuple[str, str, str]
    effort: str


@dataclass(frozen=True)
class Dossier:
    """The auditors' section, apart from the verdict.

    Attributes:
        worst: each defense's picture that leaks most, in words.
        worst_to_silos: the same for colluding silos.
        means: the attackers that were tried.
        settings: settings of the run, in plain values.
        versions: package to version.
        inputs: input to its SHA-256.
        untested: sentences on what was not tested.

    """

    worst: Mapping[str, str]
    worst_to_silos: Mapping[str, str]
    means: Sequence[Means]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    inputs: Mapping[str, str]
    untested: Sequence[str]


def dossier(report: Contents) -> Dossier:
    """Make the auditors' section from a report's rows and its job.

    Example:
        >>> import torch
        >>> job = {"seed": 0, "versions": {"torch": "2.6"}, "inputs": {"weights": "ab"}}
        >>> made = dossier(Contents({}, [], torch.rand(0, 1, 8, 8), [], job))
        >>> made.settings, made.versions, made.inputs
        ({'seed': 0}, {'torch': '2.6'}, {'weights': 'ab'})

    """
    job = plain_values(report.job, "job")
    tried = [row for row in report.leakage if row.knowledge != BASELINE]
    return Dossier(
        worst=_worst([row for row in tried if not colludes(row.knowledge)]),
        worst_to_silos=_worst([row for row in tried if colludes(row.knowledge)]),
        means=[_means(level, tried) for level in dict.fromkeys(row.knowledge for row in tried)],
        settings={key: value for key, value in job.items() if key not in _APART},
        versions=_mapping(job.get("versions")),
        inputs=_mapping(job.get("inputs")),
        untested=untested(report.leakage, job),
    )


def untested(leakage: Sequence[LeakageRow], job: Mapping[str, Any]) -> list[str]:
    """Sentences on what was not tested, from the planned attacks and the refused ones.

    Example:
        >>> untested([], {"attacks not run": ["dlg", "ggl"]})[0]
        'Attacks that are installed and were not run: DLG and GGL.'

    """
    said = []
    if names := job.get(ATTACKS_NOT_RUN):
        listed = joined(attack_name(str(name)) for name in names)
        said.append(f"Attacks that are installed and were not run: {listed}.")
    tried = {row.knowledge for row in leakage if row.defense != UNDEFENDED}
    sums = any(row.knowledge.startswith(SUM) for row in leakage)
    missing = [one for one in LEVELS if one not in tried and not (sums and colludes(one))]
    if missing:
        listed = joined(attacker(one).name for one in missing)
        said.append(f"Attackers of the defense that were not tried: {listed}.")
    if not sums:
        said.append("Colluding silos that have the sum of several others' updates.")
    for title, reason in _mapping(job.get("not run")).items():
        said.append(f"Refused: {title_words(title)}: {reason}")
    for title, count in _mapping(job.get(NOT_SCORED)).items():
        said.append(f"Without a picture, and counted for nobody: {lost_text(title, count)}.")
    if not any(key.startswith("who is in an average") for key in job):
        said.append("Membership inference: whether a picture was trained on.")
    return [
        *said,
        "A malicious server that chooses the model, or sends silos different ones, unless a row "
        "names such an attack.",
        "Property inference, and what the trained model gives away when it is queried.",
        "Other models, data, batch sizes and rounds than those named here.",
        "Hosts, vaults and networks, and who may read a silo's memory.",
    ]


def lost_text(title: str, count: Any) -> str:
    """Text on the number of updates of a trial without a picture.

    Example:
        >>> lost_text("keylock:sealed, dlg, oblivious", 1)
        'sealed lock, DLG, defense-unaware attacker: 1 update'

    """
    return f"{title_words(title)}: {count} update{'' if count == 1 else 's'}"


def _means(level: str, tried: Sequence[LeakageRow]) -> Means:
    who, own = attacker(level), [row for row in tried if row.knowledge == level]
    attacks = joined(dict.fromkeys(attack_name(row.attack) for row in own))
    most = max(row.images for row in own)
    seeds = max(row.seeds for row in own)
    effort = f"{attacks}; {count_text(most)} at the most"
    if seeds > 1:
        effort += f", {seeds} runs"
    return Means(who.name, who.does, (GOAL, who.knowledge, STAGE), effort)


def _worst(tried: Sequence[LeakageRow]) -> dict[str, str]:
    """Each defense's picture that leaks most."""
    found: dict[str, tuple[float, str]] = {}
    for row in tried:
        worst = row.worst.get("ssim_aligned")
        if worst is None or row.knowledge == ORACLE:
            continue
        score = worst["score"]
        if row.defense not in found or score > found[row.defense][0]:
            who = f"picture {worst['picture']}, {attacker(row.knowledge).name}"
            said = f"SSIM {digits(score)} ({who}, {attack_name(row.attack)})"
            found[row.defense] = (score, said)
    return {defense: said for defense, (_, said) in found.items()}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
