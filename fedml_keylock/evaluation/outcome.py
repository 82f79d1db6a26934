"""The opening table of a report: what each attacker recovers behind each defense."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..inversion.levels import LEVELS
from .evidence import WORKS, Evidence, best_of, count_text, score_of
from .leakage import BASELINE, ORACLE, PUBLIC_NORM, SUM, UNDEFENDED, LeakageRow
from .verdict import RECOGNISABLE, SELF_TEST, doubt
from .vocabulary import attack_name, attacker, claim_of, defense_name
from .wording import interval_text, mean_of

__all__ = ["Outcome", "Outcomes", "outcomes"]


@dataclass(frozen=True)
class Outcome:
    """What one attacker recovered, by their best attack.

    Attributes:
        attacker: the attacker's name.
        got: what they recovered, in words, with score and attack.
        verdict: the verdict, in words.
        score: aligned SSIM, "0.95 [0.93, 0.98]".
        kind: the verdict's kind, for its colour: "leaks", "withstood", "no_verdict", "control".

    """

    attacker: str
    got: str
    score: str
    verdict: str
    kind: str


@dataclass(frozen=True)
class Outcomes:
    """What all attackers recovered behind one defense, least knowledge first.

    Attributes:
        defense: its title, "keylock:sealed"; "no gradient" for public data alone.
        name: the defense in words.
        claim: which attackers the defense claims to stop, and its assumptions; may be empty.
        lines: one line for each attacker.

    """

    defense: str
    name: str
    claim: str
    lines: tuple[Outcome, ...]


def outcomes(rows: Sequence[LeakageRow]) -> list[Outcomes]:
    """The lines of the opening table: the undefended baseline, the defenses, the controls.

    Example:
        >>> of = lambda mean: {"ssim_aligned": {"mean": mean, "low": None, "high": None, "n": 1}}
        >>> row = LeakageRow("dlg", "none", "none", 0, "untrained", 1, of(0.9), {})
        >>> made, = outcomes([row])
        >>> made.name, made.lines[0].got, made.lines[0].verdict
        ('no defense (undefended baseline)', 'SSIM 0.90 by DLG, 1 image', 'images recovered')

    """
    seen = Evidence(rows)
    attacked = [row for row in rows if row.knowledge != BASELINE]
    titles = dict.fromkeys(row.defense for row in attacked)
    ordered = sorted(titles, key=lambda title: (title == PUBLIC_NORM, title != UNDEFENDED))
    found = []
    for title in ordered:
        own = [row for row in attacked if row.defense == title]
        levels = sorted(dict.fromkeys(row.knowledge for row in own), key=_place)
        lines = [_line(seen, [r for r in own if r.knowledge == level], own) for level in levels]
        found.append(Outcomes(title, defense_name(title), claim_of(title), tuple(lines)))
    if seen.floor is not None:
        score = _score(seen.floor)
        got = f"SSIM {score} by the {seen.floor.attack}"
        line = Outcome("anybody", got, score, "the floor: only scores above it count", "control")
        found.append(Outcomes(BASELINE, "public data alone, no gradient", "", (line,)))
    return found


def _place(level: str) -> tuple[bool, int]:
    """Sort key of a level: more knowledge later, then plugins' levels, the upper bound last."""
    known = ("none", *LEVELS)
    return level == ORACLE, known.index(level) if level in known else len(known)


def _line(seen: Evidence, rows: Sequence[LeakageRow], own: Sequence[LeakageRow]) -> Outcome:
    """One attacker's line; the defense's other rows hold the self-test."""
    name, best = attacker(rows[0].knowledge).name, _best(seen, rows)
    if best is None:
        nothing = "no verdict: nothing to score"
        return Outcome(name, "no picture in any search", "-", nothing, "no_verdict")
    score = _score(best)
    got = f"SSIM {score} by {attack_name(best.attack)}, {count_text(best.images)}"
    labels = [mean_of(row.metrics.get("label_accuracy")) for row in rows]
    if known := [share for share in labels if share is not None]:
        got += f"; {100 * max(known):.0f} % of the labels"
    return Outcome(name, got, score, *_verdict(seen, best, own))


def _best(seen: Evidence, rows: Sequence[LeakageRow]) -> LeakageRow | None:
    """The best of the rows that are evidence, or else of all."""
    return best_of(row for row in rows if seen.counts(row)) or best_of(rows)


def _verdict(seen: Evidence, best: LeakageRow, own: Iterable[LeakageRow]) -> tuple[str, str]:
    if best.defense == PUBLIC_NORM:
        return "a control, and no defense", "control"
    if best.knowledge == ORACLE:
        if seen.counts(best) and seen.reaches(best, SELF_TEST):
            return "self-test passed", "control"
        return "self-test failed: failures say nothing", "no_verdict"
    if best.defense == UNDEFENDED or best.knowledge.startswith(SUM):
        if seen.reaches(best, WORKS):
            return "images recovered", "leaks"
        return "no verdict: the attack is not shown to work", "no_verdict"
    if not seen.counts(best):
        return "no verdict: the attack fails undefended, too", "no_verdict"
    if seen.reaches(best, RECOGNISABLE):
        return "images recovered", "leaks"
    tests = [row for row in own if row.knowledge == ORACLE and seen.counts(row)]
    if doubt(seen, best, best_of(tests)):
        return "no verdict: the self-test did not pass", "no_verdict"
    if score_of(best) >= RECOGNISABLE:
        return "no more than public data alone", "withstood"
    return "images not recovered", "withstood"


def _score(row: LeakageRow) -> str:
    return interval_text(row.metrics.get("ssim_aligned"), most=1.0)
