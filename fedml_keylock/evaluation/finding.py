"""The records of a verdict: a light for each defense, and the reason in words."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .vocabulary import defense_name

__all__ = ["Finding", "Light", "Verdict"]


class Light(StrEnum):
    """The verdict on a defense, in a few words."""

    LEAKS = "leaks"
    OBLIVIOUS_ONLY = "stops a defense-unaware attacker only"
    SILOS_ONLY = "leaks to a colluding silo"
    WITHSTOOD = "withstood the attacks tried"
    SUMS_LEAK = "hides single updates; their sum leaks to a colluding silo"
    NO_VERDICT = "no verdict"


@dataclass(frozen=True)
class Finding:
    """The verdict on one defense, with its reasons.

    Attributes:
        defense: its name.
        light: the verdict.
        images: the reason: what attacks on images reach.
        labels: whether labels leak; empty if that is not known.
        accuracy: the cost in accuracy; empty if that is not known.
        sums: what a colluding silo recovers from the others' sum; empty if that was not attacked.

    """

    defense: str
    light: Light
    images: str
    labels: str = ""
    accuracy: str = ""
    sums: str = ""

    @property
    def parts(self) -> dict[str, str]:
        """The texts on images, sums, labels and accuracy that are not empty."""
        said = {"images": self.images, "colluding silos": self.sums, "labels": self.labels}
        said["accuracy"] = self.accuracy
        return {topic: text for topic, text in said.items() if text}

    @property
    def text(self) -> str:
        """All parts as one text."""
        return " ".join(self.parts.values())


@dataclass(frozen=True)
class Verdict:
    """A paragraph on the attacks, and a finding for each defense."""

    summary: str
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        lines = [
            f"{defense_name(item.defense)}: {item.light.value}. {item.text}"
            for item in self.findings
        ]
        return "\n".join([self.summary, *lines])
