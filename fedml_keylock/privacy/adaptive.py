"""Adapts the clip to a quantile of the silos' norms, by a noised count.

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
"""The bounds of a clip, however long it adapts."""


def vote(norm: float, clip: float) -> int:
    """A silo's vote: 1 if its update is within the clip, else -1.

    The paper counts 1 and 0, less 1/2; this is twice that, an integer. A silo that is left out adds
    0 to the votes, as to the updates. So it changes the count by 1, and the noise is `2 sigma_b`.

    Example:
        >>> vote(0.5, 1.0), vote(2.0, 1.0)
        (1, -1)

    """
    return 1 if norm <= clip else -1


@dataclass(frozen=True)
class QuantileClip:
    """How votes set the next clip, and how the noise is split between updates and votes.

    Attributes:
        quantile: the share of updates that should be within the clip.
        rate: of the paper's geometric update.
        silos: how many vote in a round.
        votes: the standard deviation of the noise in the sum of votes, `2 sigma_b`, without the
            noise of colluding silos, like all multipliers.
        multiplier: of the noise on updates, a little larger than that of both together.

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
        """Split the noise of both together (the paper's theorem 1).

        Args:
            config: the section.
            multiplier: z, for updates and votes together.
            silos: how many take part in a round.

        Raises:
            ConfigError: the votes alone cost as much as both together may.

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
        """The next round's clip, the same on every machine.

        Args:
            clip: of this round.
            votes: the noised sum of the silos' votes. It is clamped to the range of votes, so that
                a clip changes by at most e^rate.

        """
        share = min(max((votes / self.silos + 1) / 2, 0.0), 1.0)
        # decimal rounds exp correctly on every machine; math.exp depends on its library
        step = Context(prec=30).exp(Decimal(-self.rate * (share - self.quantile)))
        return _rounded(min(max(clip * float(step), LEAST), MOST))


def _rounded(number: float) -> float:
    """Round to BITS significant bits."""
    mantissa, exponent = math.frexp(number)
    return math.ldexp(round(math.ldexp(mantissa, BITS)), exponent - BITS)
