"""What a report says of a defense: a light, and the reason in words."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .vocabulary import defense_name

__all__ = ["Finding", "Light", "Verdict"]


class Light(StrEnum):
    """What is said of a defense, in a few words."""

    LEAKS = "leaks"
    OBLIVIOUS_ONLY = "stops a defense-unaware attacker only"
    SILOS_ONLY = "leaks to a colluding silo"
    WITHSTOOD = "withstood the attacks tried"
    SUMS_LEAK = "hides single updates; their sum leaks to a colluding silo"
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
        sums: what a colluding silo makes of the others' sum; empty where that was not attacked.

    """

    defense: str
    light: Light
    images: str
    labels: str = ""
    accuracy: str = ""
    sums: str = ""

    @property
    def parts(self) -> dict[str, str]:
        """What is said of images, sums, labels and accuracy, where anything is."""
        said = {"images": self.images, "colluding silos": self.sums, "labels": self.labels}
        said["accuracy"] = self.accuracy
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
        lines = [
            f"{defense_name(item.defense)}: {item.light.value}. {item.text}"
            for item in self.findings
        ]
        return "\n".join([self.summary, *lines])
