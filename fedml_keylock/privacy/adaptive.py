"""A clip that follows a quantile of the silos' norms, told by a noised count.

Andrew, Thakkar, McMahan, Ramaswamy, "Differentially private learning with adaptive clipping", 2021
(arXiv 1905.03871).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Context, Decimal

from ..errors import ConfigError
from .noise_config import AdaptiveClip

__all__ = ["QuantileClip", "vote"]

BITS = 24
"""Significant bits of a clip."""
LEAST, MOST = 2.0**-64, 2.0**64
"""Between these a clip stays, however long it follows."""


def vote(norm: float, clip: float) -> int:
    """What a silo adds to the count: 1 if its update is within the clip, else -1.

    The paper counts 1 and 0, less 1/2; this is twice that, a whole number. A silo that is left out
    adds 0 to it, as to the updates: it moves the count by 1, and so the noise on it is `2 sigma_b`.

    Example:
        >>> vote(0.5, 1.0), vote(2.0, 1.0)
        (1, -1)

    """
    return 1 if norm <= clip else -1


@dataclass(frozen=True)
class QuantileClip:
    """How the next clip comes of the votes, and what noise updates and votes have.

    Attributes:
        quantile: the share of updates that should be within the clip.
        rate: of the paper's geometric update.
        silos: how many vote in a round.
        votes: the standard deviation of the noise in the sum of votes, `2 sigma_b`: without the
            noise of colluding silos, as all multipliers.
        multiplier: of the noise of the updates, in place of the whole's: a little more.

    Example:
        >>> adaptive = QuantileClip.of(AdaptiveClip(), multiplier=1.0, silos=100)
        >>> adaptive.votes, round(adaptive.multiplier, 4)
        (10.0, 1.005)
        >>> adaptive.next(1.0, 0.0), adaptive.next(1.0, 100.0) < 1 < adaptive.next(1.0, -100.0)
        (1.0, True)

    """

    quantile: float
    rate: float
    silos: int
    votes: float
    multiplier: float

    @classmethod
    def of(cls, config: AdaptiveClip, multiplier: float, silos: int) -> QuantileClip:
        """Split the noise that both together are accounted for (the paper's theorem 1).

        Args:
            config: the section.
            multiplier: z, of updates and votes together.
            silos: how many take part in a round.

        Raises:
            ConfigError: the votes alone cost as much as both may.

        """
        given = config.deviation
        votes = 2 * (max(silos / 20, 2 * multiplier) if given is None else given)
        if votes <= multiplier:
            raise ConfigError(
                f"keylock.noise.adaptive.deviation: {given:g} leaves nothing for the updates, as "
                f"the noise on the count alone costs what both may: above {multiplier / 2:g}, "
                "half the multiplier; or leave it out"
            )
        rest = 1 / math.sqrt(multiplier**-2 - votes**-2)
        return cls(config.quantile, config.rate, silos, votes, rest)

    def next(self, clip: float, votes: float) -> float:
        """The clip of the next round, the same on every machine.

        Args:
            clip: of this round.
            votes: the noised sum of the silos' votes. Beyond what silos can vote it is noise, and
                counts as their most, so that a clip changes by at most e^rate.

        """
        share = min(max((votes / self.silos + 1) / 2, 0.0), 1.0)
        # decimal rounds exp correctly everywhere, math.exp as the machine's library does
        step = Context(prec=30).exp(Decimal(-self.rate * (share - self.quantile)))
        return _rounded(min(max(clip * float(step), LEAST), MOST))


def _rounded(number: float) -> float:
    """To BITS significant bits."""
    mantissa, exponent = math.frexp(number)
    return math.ldexp(round(math.ldexp(mantissa, BITS)), exponent - BITS)
