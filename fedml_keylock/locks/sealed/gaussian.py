"""Draws discrete Gaussian noise from a keystream by table, exact to 2^-100."""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal, localcontext
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from .keystream import Keystream

__all__ = ["MOST", "REACH", "DiscreteGaussian"]

REACH = 13
"""How many deviations a table covers to each side: less than 2^-125 lies beyond."""
MOST = 2.0**16
"""The largest deviation: its draws stay below 2^20."""
_ALONE = 64.0
"""Up to this deviation one table lookup makes a draw; above it, two do."""
_BITS = 128
"""Probabilities are multiples of 2^-128."""
_FIXED = 256


class DiscreteGaussian:
    """Integers x with probability proportional to ``exp(-x^2 / (2 sigma^2))``.

    For a large deviation a draw is ``fine + stretch * coarse``, of two draws of one small deviation
    s. It is a discrete Gaussian of ``sigma^2 = s^2 (1 + stretch^2)``, up to a factor of
    ``1 +- 2 exp(-2 pi^2 (sigma / (1 + stretch^2))^2)`` in every probability, here within 2^-100
    (Micciancio and Walter 2017, "Gaussian sampling over the integers"). A small draw is looked up
    by 16 bits in a table, or by 112 more bits where these do not decide. Each of its probabilities
    is exact to 2^-128 (Marsaglia 1963, in two levels).

    Args:
        sigma: the standard deviation, up to MOST.

    Raises:
        ValueError: the deviation is not positive, or above MOST.

    Example:
        >>> drawn = DiscreteGaussian(1000.0).draw(10_000, Keystream(bytes(32)))
        >>> 950 < drawn.std() < 1050
        True

    """

    def __init__(self, sigma: float) -> None:
        if not 0 < sigma <= MOST:
            raise ValueError(f"a deviation of {sigma} steps: it must be above 0, up to {MOST:.0f}")
        self.sigma = sigma
        self._stretch = 0 if sigma < _ALONE else math.isqrt(int(sigma / 2))
        counts = _weights(sigma, self._stretch)
        reach = len(counts) // 2
        values = np.arange(-reach, reach + 1, dtype=np.int32)
        often = np.array([count >> (_BITS - 16) for count in counts])
        self._table = np.full(1 << 16, reach + 1, dtype=np.int32)  # a value that no draw has
        self._decided = int(often.sum())
        self._table[: self._decided] = np.repeat(values, often)
        self._undecided = reach + 1
        rest = [*accumulate(count & ((1 << (_BITS - 16)) - 1) for count in counts)]
        self._high = np.array([bound >> 64 for bound in rest], dtype=np.uint64)
        self._low = np.array([bound & (2**64 - 1) for bound in rest], dtype=np.uint64)

    def draw(self, count: int, stream: Keystream) -> NDArray[np.int32]:
        """`count` independent draws, ``(count,)``.

        Args:
            count: how many.
            stream: from a key with no other use.

        """
        drawn = self._small(count, stream)
        if self._stretch:
            drawn += self._small(count, stream) * np.int32(self._stretch)
        return drawn

    def _small(self, count: int, stream: Keystream) -> NDArray[np.int32]:
        slots = stream.shorts(count)
        drawn = self._table.take(slots)
        late = np.flatnonzero(slots >= self._decided)
        if len(late):
            places = slots[late].astype(np.uint64) - np.uint64(self._decided)
            high = (places << np.uint64(48)) | (
                stream.longs(len(late)).view(np.uint64) >> np.uint64(16)
            )
            low = stream.longs(len(late)).view(np.uint64)
            drawn[late] = self._looked_up(high, low) - (self._undecided - 1)
        return drawn

    def _looked_up(self, high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Index of a value: how many bounds are at most ``2^64 high + low``."""
        found = np.searchsorted(self._high, high, side="left")
        equal = np.flatnonzero(self._high[found] == high)
        while len(equal):  # almost never
            equal = equal[self._low[found[equal]] <= low[equal]]
            found[equal] += 1
            equal = equal[self._high[found[equal]] == high[equal]]
        return found


def _weights(sigma: float, stretch: int) -> list[int]:
    """Probabilities of a small draw times 2^128, from the smallest value to the largest."""
    with localcontext() as context:
        context.prec = 100
        small = Decimal(sigma) ** 2 / (1 + stretch**2)  # its variance
        scale = Decimal(2**_FIXED)
        ratio = int(scale * (-1 / (2 * small)).exp())
        bend = int(scale * (-1 / small).exp())
        reach = math.ceil(REACH * small.sqrt())
    half = [*_halves(ratio, bend, reach)]
    total = 2 * sum(half) - half[0]
    counts = [(weight << _BITS) // total for weight in half]
    counts[0] += (1 << _BITS) - (2 * sum(counts) - counts[0])
    return [*counts[:0:-1], *counts]


def _halves(ratio: int, bend: int, reach: int) -> Iterator[int]:
    """``exp(-x^2 / (2 s^2))`` for x = 0, 1, ... reach, in fixed point of 256 bits."""
    weight = 1 << _FIXED
    for _ in range(reach + 1):
        yield weight
        weight = weight * ratio >> _FIXED
        ratio = ratio * bend >> _FIXED
