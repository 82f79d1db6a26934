"""Names one silo in one round, and sends its metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["SiloRound", "Tell"]

Tell = Callable[[dict[str, Any]], Any]
"""Sends metrics on FedML's own channels."""


@dataclass(frozen=True)
class SiloRound:
    """One silo in one round.

    Attributes:
        silo: its index.
        round: its index.
        who: how messages name the silo.
        tell: sends metrics.

    """

    silo: int
    round: int
    who: str
    tell: Tell

    def tell_score(self, metric: str, value: float) -> None:
        """Send one of the silo's scores, under a name that no figure of the server's has.

        Example:
            >>> SiloRound(1, 2, "silo 1", print).tell_score("psnr", 1 / 3)
            {'keylock/silo_1/psnr': 0.3333, 'round': 2}

        """
        self.tell({f"keylock/silo_{self.silo}/{metric}": round(value, 4), "round": self.round})
