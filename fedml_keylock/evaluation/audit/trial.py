"""One attack on one variant at one level of knowledge, and what a reader is told that it is."""

from __future__ import annotations

from dataclasses import dataclass

from ..leakage import PUBLIC_NORM, sum_label, title_of

__all__ = ["Trial"]


@dataclass(frozen=True)
class Trial:
    """One attack on one variant at one level of knowledge: a row of the report for each stage.

    Attributes:
        variant: "none", "public norm", or the name of the defense.
        attack: its name.
        level: of knowledge, as the attack is given it.
        silos: of an attack on averages: how many silos' updates are in each. Else 0.

    """

    variant: str
    attack: str
    level: str
    silos: int = 0

    @property
    def shown(self) -> str:
        """The level for a reader: without a secret there is nothing to know."""
        if self.silos:
            return sum_label(self.silos)
        plain = self.variant in ("none", PUBLIC_NORM)
        return "none" if plain and self.level == "oblivious" else self.level

    @property
    def title(self) -> str:
        """What its pictures and curves are headed.

        Example:
            >>> Trial("keylock", "dlg", "adaptive").title, Trial("none", "dlg", "oblivious").title
            ('keylock, dlg, adaptive', 'none, dlg')

        """
        return title_of(self.variant, self.attack, self.shown)
