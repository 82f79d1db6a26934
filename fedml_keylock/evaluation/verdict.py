"""Judges a leakage report: turns its numbers into a light and sentences for each defense.

The rules use only the mean aligned SSIM of each row, and constants. In addition to the rules of
``evidence``:

1. An attacker *recovers the images* behind a lock from ``RECOGNISABLE`` on.
2. A failure is evidence only if the key-knowing upper bound, the attack's self-test, reaches
   ``SELF_TEST``, and ``CLEARLY_MORE`` than the attackers. Else the search itself failed.
3. No lock hides the sum of several silos' updates from silos: it is reported, and is no leak.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .evidence import WORKS, Evidence, best_of, count_text, measured, names_of, score_of
from .finding import Finding, Light, Verdict
from .leakage import BASELINE, ORACLE, UNDEFENDED, LeakageRow
from .vocabulary import attack_name, attacker, colludes
from .wording import accuracy_text, digits, ends_of, joined, labels_text, mean_of

__all__ = [
    "BASELINE",
    "IGNORANT",
    "ORACLE",
    "RECOGNISABLE",
    "SELF_TEST",
    "Finding",
    "Light",
    "Verdict",
    "doubt",
    "judge",
]

RECOGNISABLE = 0.3
"""Aligned SSIM from which a lock leaks. Below ``WORKS``, to err on the silo's side.

Without an attack, 99 in 100 rows of 20 pictures score less: .28 on digits and .27 on faces with
other pictures of the class, .17 and .23 with the mean picture. Some baselines score more: the mean
of the class (.41 and .47), or a single colour for photos of little contrast. There rule 2 of
``evidence`` decides. ``plugin_tests/benchmarks/scores.py`` prints the figures.
"""
SELF_TEST = 0.3
"""Aligned SSIM that the best attack with the key must reach; no baseline reaches it."""
CLEARLY_MORE = 0.1
"""Least margin of that score over the best attacker's without the key.

By chance alone, one in 100 rows of 20 pictures scores this far above its mean (.10 and .09).
"""
FEW_IMAGES = 20
"""Least number of images for a figure to publish; fewer are an indication."""

IGNORANT = ("oblivious", "none")


def judge(leakage: Sequence[LeakageRow], accuracy: Mapping[str, Mapping[str, Any]]) -> Verdict:
    """Judge a report's rows, and the accuracies (0 to 1) of its defenses.

    Example:
        >>> made = judge([], {"none": {"server": {"mean": 0.97, "low": 0.96, "high": 0.98}}})
        >>> made.summary
        'Nothing was attacked, so nothing is said of leakage.'
        >>> made.findings[0].text
        'It was not attacked. Accuracy is 97.0 % [96.0, 98.0].'

    """
    seen = Evidence(leakage)
    findings = []
    for defense in dict.fromkeys([*accuracy, *names_of([*seen.attacked, *seen.sums], "defense")]):
        rows = [row for row in seen.attacked if row.defense == defense]
        light, reason = _plain(seen, rows) if defense == UNDEFENDED else _locked(seen, rows)
        labels = labels_text(
            mean_of(row.metrics.get("label_accuracy")) for row in rows if row.knowledge != ORACLE
        )
        cost = accuracy_text(
            accuracy.get(defense, {}),
            accuracy.get(UNDEFENDED, {}).get("server"),
            undefended=defense == UNDEFENDED,
        )
        of_sums = [row for row in seen.sums if row.defense == defense]
        if of_sums and not rows:
            reason = "No attack on a single update has a result."
        if light == Light.WITHSTOOD and any(seen.reaches(row, RECOGNISABLE) for row in of_sums):
            light = Light.SUMS_LEAK
        sums = _sums(seen, of_sums)
        findings.append(Finding(defense, light, reason, labels, cost, sums))
    return Verdict(_summary(seen), tuple(findings))


def _summary(seen: Evidence) -> str:
    if not seen.attacked:
        return "Nothing was attacked, so nothing is said of leakage."
    said = []
    names = names_of(seen.attacked)
    if works := [measured(seen.undefended[name]) for name in names if seen.works(name)]:
        this, its = ("this attack works", "Its") if len(works) == 1 else ("they work", "Their")
        said.append(
            f"The undefended baseline gives an aligned SSIM of {joined(works)}: {this}. "
            f"{its} failures can be evidence."
        )
    for name in names:
        row, shown = seen.undefended.get(name), attack_name(name)
        if row is None:
            said.append(f"The attack {shown} has no undefended baseline: its failures say nothing.")
        elif not seen.works(name):
            short = seen.short_of(row, WORKS, "from which an attack counts as working")
            said.append(
                f"The undefended baseline of {shown} gives only {measured(row, by=False)}, "
                f"{short}. Its failures say nothing."
            )
    if seen.floor is not None:
        said.append(
            f"Public data alone, with no gradient, gives {digits(score_of(seen.floor))} "
            f"({seen.floor.attack}). Only what is above that counts."
        )
    if text := _control(seen):
        said.append(text)
    fewest = min(row.images for row in seen.attacked)
    if fewest < FEW_IMAGES:
        said.append(
            f"With {count_text(fewest)} in the smallest row this is an indication. A figure to "
            f"publish needs at least {FEW_IMAGES}."
        )
    said.append("All of this holds for these attacks at these settings, and for no others.")
    return " ".join(said)


def _control(seen: Evidence) -> str:
    """The text on the control: the lock's normalisation without its secrets."""
    best = best_of(row for row in seen.control if seen.counts(row))
    if best is None:
        return ""
    text = (
        "The control, normalisation with a public scale and shift and nothing secret, gives "
        f"{measured(best)}."
    )
    if seen.reaches(best, RECOGNISABLE):
        return f"{text} What a lock keeps back beyond that, its secrets do."
    return f"{text} Here the normalisation alone makes the attack fail."


def _sums(seen: Evidence, rows: Sequence[LeakageRow]) -> str:
    """The text on what colluding silos recover from the others' sum, level by level."""
    said = []
    for level in names_of(rows, "knowledge"):
        best = best_of(row for row in rows if row.knowledge == level)
        if best is not None:
            said.append(f"{_who(best)} reaches {measured(best)}.")
    if said:
        said.append("No aggregation hides that sum from silos; noise is for that.")
    return " ".join(said)


def _who(row: LeakageRow) -> str:
    who = attacker(row.knowledge).who
    return who[0].upper() + who[1:]


def _plain(seen: Evidence, rows: Sequence[LeakageRow]) -> tuple[Light, str]:
    best = best_of(rows)
    if best is None:
        return Light.NO_VERDICT, "No attack has a score." if rows else "It was not attacked."
    if seen.reaches(best, WORKS):
        text = "The server recovers the images from what a silo sends: an aligned SSIM of"
        return Light.LEAKS, f"{text} {measured(best)}."
    short = seen.short_of(best, WORKS, "from which an attack counts as working")
    text = f"The best attack reaches an aligned SSIM of {measured(best)}, {short}."
    return Light.NO_VERDICT, f"{text} What a better one would recover is not known."


def _locked(seen: Evidence, rows: Sequence[LeakageRow]) -> tuple[Light, str]:
    if not rows:
        return Light.NO_VERDICT, "It was not attacked."
    counted = [row for row in rows if seen.counts(row)]
    attackers = [row for row in counted if row.knowledge != ORACLE]
    ignorant = best_of(row for row in attackers if row.knowledge in IGNORANT)
    knowing = best_of(row for row in attackers if row.knowledge not in IGNORANT)
    if ignorant and seen.reaches(ignorant, RECOGNISABLE):
        text = f"{_who(ignorant)} recovers the images: {_against(seen, ignorant)}."
        if knowing and score_of(knowing) > score_of(ignorant):
            text += f" {_who(knowing)} reaches {measured(knowing)}."
        return Light.LEAKS, text
    if knowing and seen.reaches(knowing, RECOGNISABLE):
        text = f"{_who(knowing)} recovers the images: {_against(seen, knowing)}."
        if ignorant is None:
            return Light.LEAKS, text
        if score_of(ignorant) >= RECOGNISABLE:
            # the structure of a mean image, or a faint picture: a person must decide
            text += (
                f" {_who(ignorant)} reaches {measured(ignorant)}. Public data alone gives no less "
                "by this measure, but it may be a picture: look at it."
            )
            return Light.LEAKS, text
        text = f"{_who(ignorant)} fails, at {measured(ignorant)}. {text}"
        without = [row for row in attackers if not colludes(row.knowledge)]
        if any(seen.reaches(row, RECOGNISABLE) for row in without):
            return Light.OBLIVIOUS_ONLY, text
        if all(row.knowledge in IGNORANT for row in without):
            text += " No adaptive attacker without a silo was tried."
        return Light.SILOS_ONLY, text
    return _unbroken(seen, attackers, [row for row in counted if row.knowledge == ORACLE])


def _unbroken(
    seen: Evidence, attackers: Sequence[LeakageRow], oracles: Sequence[LeakageRow]
) -> tuple[Light, str]:
    """No attacker that counts recovered the images: judge whether the lock is the reason."""
    best, oracle = best_of(attackers), best_of(oracles)
    if best is None:
        text = "No attack that works without a defense was tried on it"
        return Light.NO_VERDICT, f"{text}, so that nothing is known of the lock."
    reached = f"{_who(best)} reaches an aligned SSIM of {measured(best)}"
    if why := doubt(seen, best, oracle):
        return Light.NO_VERDICT, f"{reached}. {why}"
    levels = names_of(attackers, "knowledge")
    others = joined(attacker(level).name for level in levels)
    text = f"Attackers tried: {others}. {reached}"
    if len(levels) > 1:
        text = f"Attackers tried: {others}. The best, {attacker(best.knowledge).who}, reaches "
        text += f"an aligned SSIM of {measured(best)}"
    text += f", {seen.short_of(best, RECOGNISABLE, 'from which a lock is said to leak')}."
    if oracle:
        text += (
            f" The key-knowing upper bound reaches {measured(oracle)}: the attack works on this "
            "model, and what the others lack is the key."
        )
    ends = ends_of(best.metrics["ssim_aligned"])
    if ends is not None and ends[1] >= RECOGNISABLE and not seen.sunk(best):
        text += f" Its interval reaches beyond {RECOGNISABLE:.2f}: more images may turn this."
    text += _stages(seen, attackers, oracles)
    if all(level in IGNORANT for level in levels):
        return Light.OBLIVIOUS_ONLY, f"{text} No adaptive attacker was tried."
    return Light.WITHSTOOD, text


def doubt(seen: Evidence, best: LeakageRow, oracle: LeakageRow | None) -> str:
    """Why the attackers' failure, with this their best row, is no evidence; empty if it is."""
    if oracle is None:
        return (
            "No key-knowing upper bound was run with an attack that works: the search may have "
            "failed, which says nothing of the lock."
        )
    reached = f"The key-knowing upper bound reaches only {measured(oracle)}"
    if not seen.reaches(oracle, SELF_TEST):
        short = seen.short_of(oracle, SELF_TEST, "that the self-test asks for")
        return f"{reached}, {short}: the search failed, which says nothing of the lock."
    if score_of(oracle) < score_of(best) + CLEARLY_MORE:
        return f"{reached}, not clearly more: the failure cannot be put down to the lock."
    return ""


def _stages(seen: Evidence, attackers: Sequence[LeakageRow], oracles: Sequence[LeakageRow]) -> str:
    """Name the weights for which there is no evidence."""
    said = ""
    for stage in names_of(attackers, "stage"):
        oracle = best_of(row for row in oracles if row.stage == stage)
        if oracle is None:
            said += (
                f" No key-knowing upper bound was run on {stage} weights: failures there say "
                "nothing."
            )
        elif not seen.reaches(oracle, SELF_TEST):
            said += (
                f" On {stage} weights even the key-knowing upper bound reaches only "
                f"{digits(score_of(oracle))}: failures there say nothing."
            )
    return said


def _against(seen: Evidence, row: LeakageRow) -> str:
    text = f"an aligned SSIM of {measured(row)}"
    plain = seen.undefended.get(row.attack)
    return text if plain is None else f"{text}, and {digits(score_of(plain))} undefended"
