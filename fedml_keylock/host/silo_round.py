"""A silo's round, as whoever watches it knows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["SiloRound", "Tell"]

Tell = Callable[[dict[str, Any]], Any]
"""Takes metrics: FedML's own channels."""


@dataclass(frozen=True)
class SiloRound:
    """One silo's turn in one round.

    Attributes:
        silo: its index.
        round: its index.
        who: how messages name the silo.
        tell: takes the silo's scores.

    """

    silo: int
    round: int
    who: str
    tell: Tell
