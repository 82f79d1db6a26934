"""A trial: one attack on one variant at one level of knowledge, and its title."""

from __future__ import annotations

from dataclasses import dataclass

from ..leakage import PUBLIC_NORM, sum_label, title_of

__all__ = ["Trial"]


@dataclass(frozen=True)
class Trial:
    """One attack on one variant at one level of knowledge: a row of the report for each stage.

    Attributes:
        variant: "none", "public norm", or the name of the defense.
        attack: the attack's name.
        level: the level of knowledge that the attack runs at.
        silos: number of silos in each attacked average; 0 for single updates.

    """

    variant: str
    attack: str
    level: str
    silos: int = 0

    @property
    def shown(self) -> str:
        """The level as a report shows it; "none" if nothing is secret."""
        if self.silos:
            return sum_label(self.silos)
        plain = self.variant in ("none", PUBLIC_NORM)
        return "none" if plain and self.level == "oblivious" else self.level

    @property
    def title(self) -> str:
        """Heading of its pictures and curves.

        Example:
            >>> Trial("keylock", "dlg", "adaptive").title, Trial("none", "dlg", "oblivious").title
            ('keylock, dlg, adaptive', 'none, dlg')

        """
        return title_of(self.variant, self.attack, self.shown)
