"""Computes the participants' weights in an average, and the bounds of their words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import UpdateRefused

__all__ = ["Shares"]

EXACT = 2.0**40
"""Integers below this are used as weights directly: all that is computed with them fits 64 bits."""
BITS = 24
"""Bits of the largest weight otherwise, as in float32: FedML's average has no finer ones."""


@dataclass(frozen=True)
class Shares:
    """The participants' weights in the average: FedAvg's, by numbers of samples.

    Attributes:
        samples: n_i of each participant, in order; positive integers.

    """

    samples: tuple[int, ...]

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Shares:
        """Weights from the numbers of samples that silos report; fractions are allowed.

        Raises:
            UpdateRefused: a number is not positive and finite, so the bounds would overflow.

        Example:
            >>> Shares.of([100, 50]).samples, Shares.of([1.5, 1]).samples
            ((100, 50), (12582912, 8388608))

        """
        odd = [number for number in numbers if not 0 < number < math.inf]
        if odd:  # names no other number: the line reaches whoever started the job
            raise UpdateRefused(
                f"a silo says that it has {odd[0]:g} samples, and each must have more than 0: start"
                " the job without a silo that has no data"
            )
        if all(float(number).is_integer() and number < EXACT for number in numbers):
            return cls(tuple(round(number) for number in numbers))
        up = BITS - math.frexp(max(numbers))[1]
        return cls(tuple(max(1, round(math.ldexp(number, up))) for number in numbers))

    @property
    def total(self) -> int:
        """n, the sum of all weights."""
        return sum(self.samples)

    @property
    def low_bits(self) -> int:
        """Bits in the low of two words, so that sums of all participants stay below 2^31."""
        return 31 - (len(self.samples) - 1).bit_length()

    def bound(self, place: int) -> int:
        """The bound on a participant's words: the bounds of all add up to less than 2^31."""
        return self.samples[place] * (2**31 - 1 - len(self.samples)) // self.total
