"""What the numbers of a leakage report mean, in words and with one light a defense.

The rules use the mean aligned SSIM of each row and constants, and nothing else. Beside those of
``evidence``:

1. An attacker *recovers the images* behind a lock from ``RECOGNISABLE`` on.
2. A failure is evidence only if the oracle, the attack with the silo's private state, reaches
   ``SELF_TEST``, and ``CLEARLY_MORE`` than the attackers: else it is the search that failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from .evidence import WORKS, Evidence, best_of, count_text, measured, names_of, score_of
from .leakage import BASELINE, ORACLE, PUBLIC_NORM, UNDEFENDED, LeakageRow
from .wording import accuracy_text, digits, ends_of, joined, labels_text, mean_of

__all__ = ["BASELINE", "ORACLE", "Finding", "Light", "Verdict", "judge"]

RECOGNISABLE = 0.3
"""Aligned SSIM from which a lock is said to leak. Below ``WORKS``, to err on the silo's side.

Of rows of 20 pictures 99 in 100 have less without anything of theirs: with other pictures of their
class .28 on digits and .27 on faces, with the mean picture .17 and .23. Where more is to be had so,
as with the mean of the class (.41 and .47), or with one colour of photos with little contrast,
rule 2 of ``evidence`` decides. ``plugin_tests/benchmarks/scores.py`` prints it.
"""
SELF_TEST = 0.3
"""Aligned SSIM that the best attack with the private state must reach: nothing else gives it."""
CLEARLY_MORE = 0.1
"""How much more that must be than the best attacker's without the private state.

So far above its mean is the score of one in 100 rows of 20 pictures, by chance alone (.10 and .09).
"""
FEW_IMAGES = 20
"""A row with fewer images is an indication, not a figure to publish."""

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
    seen = Evidence(leakage)
    findings = []
    for defense in dict.fromkeys([*accuracy, *names_of(seen.attacked + seen.sums, "defense")]):
        rows = [row for row in seen.attacked if row.defense == defense]
        light, reason = _plain(seen, rows) if defense == UNDEFENDED else _locked(seen, rows)
        reason += seen.of_sums(defense, RECOGNISABLE)
        labels = labels_text(
            mean_of(row.metrics.get("label_accuracy")) for row in rows if row.knowledge != ORACLE
        )
        cost = accuracy_text(
            accuracy.get(defense, {}),
            accuracy.get(UNDEFENDED, {}).get("server"),
            undefended=defense == UNDEFENDED,
        )
        findings.append(Finding(defense, light, reason, labels, cost))
    return Verdict(_summary(seen), tuple(findings))


def _summary(seen: Evidence) -> str:
    if not seen.attacked:
        return "Nothing was attacked, so nothing is said of leakage."
    said = []
    names = names_of(seen.attacked)
    if works := [measured(seen.undefended[name]) for name in names if seen.works(name)]:
        they, their = ("it works", "its") if len(works) == 1 else ("they work", "their")
        said.append(
            f"Without a defense the aligned SSIM reached {joined(works)}: {they}, so that {their} "
            "failures can be evidence."
        )
    for name in names:
        row = seen.undefended.get(name)
        if row is None:
            said.append(f"{name} has no score without a defense: no verdict from its failures.")
        elif not seen.works(name):
            short = seen.short_of(row, WORKS, "from which an attack counts as working")
            said.append(
                f"Without a defense {name} reached an aligned SSIM of only "
                f"{measured(row, by=False)}, {short}: no verdict from its failures."
            )
    if seen.floor is not None:
        said.append(
            f"Public data alone, with no gradient, gives {digits(score_of(seen.floor))} "
            f"({seen.floor.attack}); only what is above that counts."
        )
    if text := _control(seen):
        said.append(text)
    fewest = min(row.images for row in seen.attacked)
    if fewest < FEW_IMAGES:
        said.append(
            f"With {count_text(fewest)} in the smallest row this is an indication; a figure to "
            f"publish needs at least {FEW_IMAGES}."
        )
    said.append("All of this holds for these attacks at these settings, and for no others.")
    return " ".join(said)


def _control(seen: Evidence) -> str:
    """What the lock's normalisation does without its secrets, by the attacks that work."""
    best = best_of(row for row in seen.control if seen.counts(row))
    if best is None:
        return ""
    text = (
        f"Normalisation with a public scale and shift ({PUBLIC_NORM}), a control and no defense, "
        f"gives {measured(best)}"
    )
    if seen.reaches(best, RECOGNISABLE):
        return f"{text}: what a lock keeps back beyond that, its secrets do."
    return f"{text}: here the normalisation alone makes the attack fail."


def _plain(seen: Evidence, rows: Sequence[LeakageRow]) -> tuple[Light, str]:
    best = best_of(rows)
    if best is None:
        return Light.NO_VERDICT, "No attack has a score." if rows else "It was not attacked."
    if seen.reaches(best, WORKS):
        text = "The images come back from what a silo sends: an aligned SSIM of"
        return Light.LEAKS, f"{text} {measured(best)}."
    short = seen.short_of(best, WORKS, "from which an attack counts as working")
    text = f"The best attack reached an aligned SSIM of {measured(best)}, {short}"
    return Light.NO_VERDICT, f"{text}: what a better one would recover is not known."


def _locked(seen: Evidence, rows: Sequence[LeakageRow]) -> tuple[Light, str]:
    if not rows:
        return Light.NO_VERDICT, "It was not attacked."
    counted = [row for row in rows if seen.counts(row)]
    attackers = [row for row in counted if row.knowledge != ORACLE]
    ignorant = best_of(row for row in attackers if row.knowledge in IGNORANT)
    knowing = best_of(row for row in attackers if row.knowledge not in IGNORANT)
    if ignorant and seen.reaches(ignorant, RECOGNISABLE):
        text = f"An attacker who ignores the lock recovers the images: {_against(seen, ignorant)}."
        if knowing and score_of(knowing) > score_of(ignorant):
            text += f" The {knowing.knowledge} attacker reaches {measured(knowing)}."
        return Light.LEAKS, text
    if knowing and seen.reaches(knowing, RECOGNISABLE):
        text = f"{knowing.knowledge} attacker recovers the images: {_against(seen, knowing)}."
        if ignorant is None:
            return Light.LEAKS, f"The {text}"
        if score_of(ignorant) >= RECOGNISABLE:
            # a sum of structure that a mean image has too, or a faint picture: the eye must tell
            text += (
                f" One who ignores the lock reaches {measured(ignorant)}, no more than "
                "public data alone gives by this measure, and yet perhaps a picture: look at it."
            )
            return Light.LEAKS, f"The {text}"
        fails = f"An attacker who ignores the lock fails, at {measured(ignorant)}"
        return Light.OBLIVIOUS_ONLY, f"{fails}, but the {text}"
    return _unbroken(seen, attackers, [row for row in counted if row.knowledge == ORACLE])


def _unbroken(
    seen: Evidence, attackers: Sequence[LeakageRow], oracles: Sequence[LeakageRow]
) -> tuple[Light, str]:
    """No attacker that counts recovered the images: whether that is the lock's doing."""
    best, oracle = best_of(attackers), best_of(oracles)
    if best is None:
        text = "No attacker was tried on it with an attack that works without a defense"
        return Light.NO_VERDICT, f"{text}, so that nothing is known of the lock."
    reached = f"reached an aligned SSIM of {measured(best)}"
    if doubt := _doubt(seen, best, oracle):
        return Light.NO_VERDICT, f"The {best.knowledge} attacker {reached}, but {doubt}"
    levels = names_of(attackers, "knowledge")
    if len(levels) > 1:
        text = f"Of the attackers tried ({joined(levels)}) the best, {best.knowledge}, {reached}"
    else:
        text = f"The {best.knowledge} attacker, the only one tried, {reached}"
    text += f", {seen.short_of(best, RECOGNISABLE, 'from which a lock is said to leak')}"
    if oracle:
        text += (
            f"; with the silo's private state the attack reaches {measured(oracle)}, so "
            "that the attack works on this model, and what the others lack is that state."
        )
    ends = ends_of(best.metrics["ssim_aligned"])
    if ends is not None and ends[1] >= RECOGNISABLE and not seen.sunk(best):
        text += f" Its interval reaches beyond {RECOGNISABLE:.2f}: more images may turn this."
    text += _stages(seen, attackers, oracles)
    if all(level in IGNORANT for level in levels):
        return Light.OBLIVIOUS_ONLY, f"{text} An attacker who knows the lock was not tried."
    return Light.WITHSTOOD, text


def _doubt(seen: Evidence, best: LeakageRow, oracle: LeakageRow | None) -> str:
    """Why the attackers' failure is no evidence; nothing if it is."""
    if oracle is None:
        return (
            "no oracle was run with an attack that works: the failure may be that of the search, "
            "and says nothing of the lock."
        )
    reached = f"with the silo's private state the attack reached {measured(oracle)}"
    if not seen.reaches(oracle, SELF_TEST):
        short = seen.short_of(oracle, SELF_TEST, "that the self-test asks for")
        return f"even {reached}, {short}: the search failed, which says nothing of the lock."
    if score_of(oracle) < score_of(best) + CLEARLY_MORE:
        return f"{reached}, not clearly more: the failure cannot be put down to the lock."
    return ""


def _stages(seen: Evidence, attackers: Sequence[LeakageRow], oracles: Sequence[LeakageRow]) -> str:
    """Which weights the evidence does not reach."""
    said = ""
    for stage in names_of(attackers, "stage"):
        oracle = best_of(row for row in oracles if row.stage == stage)
        if oracle is None:
            said += f" No oracle was run on {stage} weights: failures there say nothing."
        elif not seen.reaches(oracle, SELF_TEST):
            said += (
                f" On {stage} weights even the oracle reached only {digits(score_of(oracle))}: "
                "failures there say nothing."
            )
    return said


def _against(seen: Evidence, row: LeakageRow) -> str:
    text = f"an aligned SSIM of {measured(row)}"
    plain = seen.undefended.get(row.attack)
    return text if plain is None else f"{text}, {digits(score_of(plain))} without a defense"
