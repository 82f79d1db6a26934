"""What the numbers of a leakage report mean, in words and with one light a defense.

The rules use the mean aligned SSIM of each row and the constants below, and nothing else:

1. An attack *works* if the run without a defense reaches ``WORKS`` in any round. The failure of an
   attack that does not work says nothing; its success still does, from ``WORKS`` on.
2. An attacker *recovers the images* behind a lock from ``RECOGNISABLE`` on.
3. A score counts only above the best that public data gives with no gradient, where that was run;
   the nearest of the public images, which only the truth tells, is no such thing.
4. A failure is evidence only if the oracle, the attack with the silo's private state, reaches
   ``SELF_TEST``, and ``CLEARLY_MORE`` than the attackers: else it is the search that failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from .leakage import LeakageRow
from .wording import accuracy_text, digits, ends_of, interval_text, joined, labels_text, mean_of

__all__ = ["CONTROL", "Finding", "Light", "Verdict", "judge"]

WORKS = 0.5
"""Aligned SSIM from which an attack works: outlines are where they were."""
RECOGNISABLE = 0.3
"""Aligned SSIM from which a lock is said to leak. Below ``WORKS``, to err on the silo's side."""
SELF_TEST = 0.3
"""Aligned SSIM that the best attack with the private state must reach."""
CLEARLY_MORE = 0.1
"""How much more that must be than the best attacker's without the private state."""
FEW_IMAGES = 20
"""A row with fewer images is an indication, not a figure to publish."""

UNDEFENDED, BASELINE, ORACLE = "none", "no gradient", "oracle"
NEAREST = "nearest public image"
"""A baseline that is chosen by the truth, so that it is shown and excuses nothing."""
CONTROL = "public norm"
"""The control in the place of a defense: the lock's normalisation, and nothing that is secret."""
IGNORANT = ("oblivious", "none")


class Light(StrEnum):
    """What is said of a defense, in a few words."""

    LEAKS = "leaks"
    OBLIVIOUS_ONLY = "stops an oblivious attacker only"
    WITHSTOOD = "withstood the attacks tried"
    NO_VERDICT = "no verdict"


@dataclass(frozen=True)
class Finding:
    """What is said of one defense.

    Attributes:
        defense: its name.
        light: what it comes to.
        images: the reason.
        labels: whether they leak; empty where nothing is known of it.
        accuracy: what it costs; empty where nothing is known of it.

    """

    defense: str
    light: Light
    images: str
    labels: str = ""
    accuracy: str = ""

    @property
    def parts(self) -> dict[str, str]:
        """What is said of images, labels and accuracy, where anything is."""
        said = {"images": self.images, "labels": self.labels, "accuracy": self.accuracy}
        return {topic: text for topic, text in said.items() if text}

    @property
    def text(self) -> str:
        """All of it."""
        return " ".join(self.parts.values())


@dataclass(frozen=True)
class Verdict:
    """A paragraph on the attacks, and a finding for each defense."""

    summary: str
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        lines = [f"{item.defense}: {item.light.value}. {item.text}" for item in self.findings]
        return "\n".join([self.summary, *lines])


def judge(leakage: Sequence[LeakageRow], accuracy: Mapping[str, Mapping[str, Any]]) -> Verdict:
    """Word a verdict from the rows of a report and the accuracies (0 to 1) of its defenses.

    Example:
        >>> print(judge([], {"none": {"server": {"mean": 0.97, "low": 0.96, "high": 0.98}}}))
        Nothing was attacked, so nothing is said of leakage.
        none: no verdict. It was not attacked. Accuracy is 97.0 % [96.0, 98.0].

    """
    trial = _Trial(tuple(leakage))
    findings = []
    for defense in dict.fromkeys([*accuracy, *(row.defense for row in trial.attacked)]):
        rows = [row for row in trial.attacked if row.defense == defense]
        light, reason = _plain(trial, rows) if defense == UNDEFENDED else _locked(trial, rows)
        labels = labels_text(
            mean_of(row.metrics.get("label_accuracy")) for row in rows if row.knowledge != ORACLE
        )
        cost = accuracy_text(
            accuracy.get(defense, {}),
            accuracy.get(UNDEFENDED, {}).get("server"),
            undefended=defense == UNDEFENDED,
        )
        findings.append(Finding(defense, light, reason, labels, cost))
    return Verdict(_summary(trial), tuple(findings))


@dataclass(frozen=True)
class _Trial:
    """Everything that was run, the best of the baselines, and each attack's undefended best.

    What was run on the control stands apart: it is no defense that anybody asked about.
    """

    rows: tuple[LeakageRow, ...]
    attacked: tuple[LeakageRow, ...] = field(init=False)
    control: tuple[LeakageRow, ...] = field(init=False)
    floor: LeakageRow | None = field(init=False)
    undefended: dict[str, LeakageRow] = field(init=False)

    def __post_init__(self) -> None:
        shown = tuple(row for row in self.rows if row.knowledge != BASELINE)
        attacked = tuple(row for row in shown if row.defense != CONTROL)
        plain = [row for row in attacked if row.defense == UNDEFENDED]
        best = {name: _best(row for row in plain if row.attack == name) for name in _names(plain)}
        object.__setattr__(self, "attacked", attacked)
        object.__setattr__(self, "control", tuple(row for row in shown if row.defense == CONTROL))
        blind = [r for r in self.rows if r.knowledge == BASELINE and r.attack != NEAREST]
        object.__setattr__(self, "floor", _best(blind))
        object.__setattr__(self, "undefended", {k: v for k, v in best.items() if v is not None})

    def sunk(self, row: LeakageRow) -> bool:
        """Whether the score is no more than what public data gives."""
        return self.floor is not None and _score(row) <= _score(self.floor)

    def reaches(self, row: LeakageRow, threshold: float) -> bool:
        return _score(row) >= threshold and not self.sunk(row)

    def works(self, attack: str) -> bool:
        return attack in self.undefended and self.reaches(self.undefended[attack], WORKS)

    def counts(self, row: LeakageRow) -> bool:
        return self.works(row.attack) or self.reaches(row, WORKS)

    def short_of(self, row: LeakageRow, threshold: float, meaning: str) -> str:
        if _score(row) < threshold or self.floor is None:
            return f"short of the {threshold:.2f} {meaning}"
        return f"no more than the {digits(_score(self.floor))} that public data alone gives"


def _summary(trial: _Trial) -> str:
    if not trial.attacked:
        return "Nothing was attacked, so nothing is said of leakage."
    said = []
    names = _names(trial.attacked)
    if works := [_measured(trial.undefended[name], by=True) for name in names if trial.works(name)]:
        they, their = ("it works", "its") if len(works) == 1 else ("they work", "their")
        said.append(
            f"Without a defense the aligned SSIM reached {joined(works)}: {they}, so that {their} "
            "failures can be evidence."
        )
    for name in names:
        row = trial.undefended.get(name)
        if row is None:
            said.append(f"{name} has no score without a defense: no verdict from its failures.")
        elif not trial.works(name):
            short = trial.short_of(row, WORKS, "from which an attack counts as working")
            said.append(
                f"Without a defense {name} reached an aligned SSIM of only {_measured(row)}, "
                f"{short}: no verdict from its failures."
            )
    if trial.floor is not None:
        said.append(
            f"Public data alone, with no gradient, gives {digits(_score(trial.floor))} "
            f"({trial.floor.attack}); only what is above that counts."
        )
    if text := _control(trial):
        said.append(text)
    fewest = min(row.images for row in trial.attacked)
    if fewest < FEW_IMAGES:
        said.append(
            f"With {_count(fewest)} in the smallest row this is an indication; a figure to publish "
            f"needs at least {FEW_IMAGES}."
        )
    said.append("All of this holds for these attacks at these settings, and for no others.")
    return " ".join(said)


def _control(trial: _Trial) -> str:
    """What the lock's normalisation does without its secrets, by the attacks that work."""
    best = _best(row for row in trial.control if trial.counts(row))
    if best is None:
        return ""
    text = (
        f"Normalisation with a public scale and shift ({CONTROL}), a control and no defense, gives "
        f"{_measured(best, by=True)}"
    )
    if trial.reaches(best, RECOGNISABLE):
        return f"{text}: what a lock keeps back beyond that, its secrets do."
    return f"{text}: here the normalisation alone makes the attack fail."


def _plain(trial: _Trial, rows: Sequence[LeakageRow]) -> tuple[Light, str]:
    best = _best(rows)
    if best is None:
        return Light.NO_VERDICT, "No attack has a score." if rows else "It was not attacked."
    if trial.reaches(best, WORKS):
        text = "The images come back from what a silo sends: an aligned SSIM of"
        return Light.LEAKS, f"{text} {_measured(best, by=True)}."
    short = trial.short_of(best, WORKS, "from which an attack counts as working")
    text = f"The best attack reached an aligned SSIM of {_measured(best, by=True)}, {short}"
    return Light.NO_VERDICT, f"{text}: what a better one would recover is not known."


def _locked(trial: _Trial, rows: Sequence[LeakageRow]) -> tuple[Light, str]:
    if not rows:
        return Light.NO_VERDICT, "It was not attacked."
    counted = [row for row in rows if trial.counts(row)]
    attackers = [row for row in counted if row.knowledge != ORACLE]
    ignorant = _best(row for row in attackers if row.knowledge in IGNORANT)
    knowing = _best(row for row in attackers if row.knowledge not in IGNORANT)
    if ignorant and trial.reaches(ignorant, RECOGNISABLE):
        text = f"An attacker who ignores the lock recovers the images: {_against(trial, ignorant)}."
        if knowing and _score(knowing) > _score(ignorant):
            text += f" The {knowing.knowledge} attacker reaches {_measured(knowing, by=True)}."
        return Light.LEAKS, text
    if knowing and trial.reaches(knowing, RECOGNISABLE):
        text = f"{knowing.knowledge} attacker recovers the images: {_against(trial, knowing)}."
        if ignorant is None:
            return Light.LEAKS, f"The {text}"
        if _score(ignorant) >= RECOGNISABLE:
            # a sum of structure that a mean image has too, or a faint picture: the eye must tell
            text += (
                f" One who ignores the lock reaches {_measured(ignorant, by=True)}, no more than "
                "public data alone gives by this measure, and yet perhaps a picture: look at it."
            )
            return Light.LEAKS, f"The {text}"
        fails = f"An attacker who ignores the lock fails, at {_measured(ignorant, by=True)}"
        return Light.OBLIVIOUS_ONLY, f"{fails}, but the {text}"
    return _unbroken(trial, attackers, [row for row in counted if row.knowledge == ORACLE])


def _unbroken(
    trial: _Trial, attackers: Sequence[LeakageRow], oracles: Sequence[LeakageRow]
) -> tuple[Light, str]:
    """No attacker that counts recovered the images: whether that is the lock's doing."""
    best, oracle = _best(attackers), _best(oracles)
    if best is None:
        text = "No attacker was tried on it with an attack that works without a defense"
        return Light.NO_VERDICT, f"{text}, so that nothing is known of the lock."
    reached = f"reached an aligned SSIM of {_measured(best, by=True)}"
    if doubt := _doubt(trial, best, oracle):
        return Light.NO_VERDICT, f"The {best.knowledge} attacker {reached}, but {doubt}"
    levels = _names(attackers, "knowledge")
    if len(levels) > 1:
        text = f"Of the attackers tried ({joined(levels)}) the best, {best.knowledge}, {reached}"
    else:
        text = f"The {best.knowledge} attacker, the only one tried, {reached}"
    text += f", {trial.short_of(best, RECOGNISABLE, 'from which a lock is said to leak')}"
    if oracle:
        text += (
            f"; with the silo's private state the attack reaches {_measured(oracle, by=True)}, so "
            "that the attack works on this model, and what the others lack is that state."
        )
    ends = ends_of(best.metrics["ssim_aligned"])
    if ends is not None and ends[1] >= RECOGNISABLE and not trial.sunk(best):
        text += f" Its interval reaches beyond {RECOGNISABLE:.2f}: more images may turn this."
    text += _stages(trial, attackers, oracles)
    if all(level in IGNORANT for level in levels):
        return Light.OBLIVIOUS_ONLY, f"{text} An attacker who knows the lock was not tried."
    return Light.WITHSTOOD, text


def _doubt(trial: _Trial, best: LeakageRow, oracle: LeakageRow | None) -> str:
    """Why the attackers' failure is no evidence; nothing if it is."""
    if oracle is None:
        return (
            "no oracle was run with an attack that works: the failure may be that of the search, "
            "and says nothing of the lock."
        )
    reached = f"with the silo's private state the attack reached {_measured(oracle, by=True)}"
    if not trial.reaches(oracle, SELF_TEST):
        short = trial.short_of(oracle, SELF_TEST, "that the self-test asks for")
        return f"even {reached}, {short}: the search failed, which says nothing of the lock."
    if _score(oracle) < _score(best) + CLEARLY_MORE:
        return f"{reached}, not clearly more: the failure cannot be put down to the lock."
    return ""


def _stages(trial: _Trial, attackers: Sequence[LeakageRow], oracles: Sequence[LeakageRow]) -> str:
    """Which weights the evidence does not reach."""
    said = ""
    for stage in _names(attackers, "stage"):
        oracle = _best(row for row in oracles if row.stage == stage)
        if oracle is None:
            said += f" No oracle was run on {stage} weights: failures there say nothing."
        elif not trial.reaches(oracle, SELF_TEST):
            said += (
                f" On {stage} weights even the oracle reached only {digits(_score(oracle))}: "
                "failures there say nothing."
            )
    return said


def _score(row: LeakageRow) -> float:
    value = mean_of(row.metrics.get("ssim_aligned"))
    return -1.0 if value is None else value  # SSIM's own least


def _best(rows: Iterable[LeakageRow]) -> LeakageRow | None:
    scored = [row for row in rows if mean_of(row.metrics.get("ssim_aligned")) is not None]
    return max(scored, key=_score, default=None)


def _names(rows: Iterable[LeakageRow], column: str = "attack") -> list[str]:
    return list(dict.fromkeys(str(getattr(row, column)) for row in rows))


def _count(images: int) -> str:
    return "1 image" if images == 1 else f"{images} images"


def _measured(row: LeakageRow, *, by: bool = False) -> str:
    score = interval_text(row.metrics.get("ssim_aligned"), most=1.0) + (
        f" with {row.attack}" if by else ""
    )
    return f"{score} (round {row.round}, {row.stage} weights, {_count(row.images)})"


def _against(trial: _Trial, row: LeakageRow) -> str:
    text = f"an aligned SSIM of {_measured(row, by=True)}"
    plain = trial.undefended.get(row.attack)
    return text if plain is None else f"{text}, {digits(_score(plain))} without a defense"
