"""Estimates epsilon from one run by canaries, beside the accountant's bound.

Andrew, Kairouz, Oh, Oprea, McMahan, Suriyakumar, "One-shot empirical privacy estimation for
federated learning", ICLR 2024 (arXiv 2302.03098). Canaries are random directions, added to sums
like further units. An observer of a sum projects it on each canary, and on directions that were
held out. Both sets of projections are nearly Gaussian; how well they separate gives an epsilon.

It is an estimate for one attacker, not a bound: another attacker may do better, and a bound holds
for the worst unit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

from ..errors import ConfigError

__all__ = ["Canaries", "CanaryEstimate", "directions", "epsilon_of_gaussians", "estimate"]

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class CanaryEstimate:
    """An estimate of epsilon, not a bound.

    Attributes:
        epsilon: at delta.
        low: lower end of its interval, from the 95 % interval of the separation (Hedges and Olkin
            1985).
        high: upper end of the same.
        delta: as given.
        separation: the difference of the two means divided by the common standard deviation.
        count: of canaries.
        bound: the accountant's epsilon for a unit that takes part like a canary; None if not
            computed.

    """

    epsilon: float
    low: float
    high: float
    delta: float
    separation: float
    count: int
    bound: float | None = None

    def __str__(self) -> str:
        said = (
            f"epsilon about {self.epsilon:.3g} ({self.low:.3g} to {self.high:.3g}) at delta "
            f"{self.delta:g}, an estimate by {self.count} canaries and no bound"
        )
        return said if self.bound is None else f"{said}; the accountant's bound is {self.bound:.3g}"


def directions(seed: bytes, count: int, size: int, *, first: int = 0) -> Iterator[Vector]:
    """Random unit vectors, uniform on the sphere and the same for the same seed.

    One at a time: a thousand of a large model's size would not fit in memory.

    Args:
        seed: secret until the estimate is made.
        count: how many.
        size: entries of each.
        first: index of the first one.

    Example:
        >>> a, b = directions(b"seed", 2, 10_000)
        >>> round(float(a @ a), 6), bool(abs(a @ b) < 0.05)
        (1.0, True)

    """
    for number in range(first, first + count):
        key = np.random.SeedSequence([number, *seed])
        drawn = np.random.Generator(np.random.PCG64(key)).standard_normal(size)
        yield drawn / math.sqrt(float(drawn @ drawn))


@dataclass
class Canaries:
    """The canaries of one job, and the statistics of its sums.

    The statistic is linear in the sums. So it suffices to keep a weighted sum, and to project it
    once. With noise of deviation s_t in each direction and a canary of length a_t in round t, the
    best test of Gaussians weights a round by a_t / s_t^2. s_t^2 is estimated by the sum's own mean
    square, which is almost all noise. For an observer of the final model only, all rounds have the
    same weight. Canaries are noise to one another as well, the same in all rounds: after R rounds
    of multiplier z the separation is sqrt(R) / sqrt(z^2 + R count / size).

    Attributes:
        count: of canaries, and of held-out directions.
        size: entries of a sum.
        seed: of both.
        rate: the probability of each canary to be in a sum, drawn for each sum.

    Example:
        >>> canaries = Canaries(100, 20_000, b"seed")
        >>> noise = np.random.default_rng(0).normal(0, 1.0, 20_000)
        >>> canaries.see(canaries.added(1.0) + noise, 1.0)
        >>> found = canaries.estimate(1e-5)
        >>> found.low < 4.38 < found.high
        True

    """

    count: int
    size: int
    seed: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    rate: float = 1.0
    _added: Vector | None = field(default=None, repr=False)
    _seen: Vector | float = field(default=0.0, repr=False)
    _final: Vector | float = field(default=0.0, repr=False)

    def added(self, clip: float) -> Vector:
        """The sum of the canaries, each of length clip, to add to a round."""
        if self._added is None or self.rate < 1:
            self._added = np.zeros(self.size)
            drawn = np.random.default_rng().random(self.count) < self.rate
            for number in np.flatnonzero(drawn):
                self._added += next(directions(self.seed, 1, self.size, first=int(number)))
        return clip * self._added

    def see(self, total: Vector, clip: float) -> None:
        """Record a round's sum, in which canaries have length clip.

        Args:
            total: the observer's sum ``(size,)``, without what the observer knows of it.
            clip: in the same unit.

        """
        square = float(total @ total) / self.size
        if square:
            self._seen = self._seen + clip / square * total
            self._final = self._final + total

    def estimate(self, delta: float, *, final: bool = False) -> CanaryEstimate:
        """Estimate epsilon from the sums.

        Args:
            delta: of (epsilon, delta).
            final: whether the observer has only the final model, the sum of the sums.

        """
        seen = self._final if final else self._seen
        inserted, heldout = (
            np.array([(one * seen).sum() for one in self._directions(first)])
            for first in (0, self.count)
        )
        return estimate(inserted, heldout, delta)

    def _directions(self, first: int) -> Iterator[Vector]:
        return directions(self.seed, self.count, self.size, first=first)


def estimate(inserted: Vector, heldout: Vector, delta: float) -> CanaryEstimate:
    """Epsilon at delta for two Gaussians with the observed means and one common deviation.

    Adding a unit shifts a sum and keeps its noise, so one deviation is right. With one for each, as
    in the paper, a delta of 1e-5 depends on tails that few canaries show: for 200 canaries that
    were never added, the estimate is 1.3 instead of 0.

    Args:
        inserted: projection of the sum on each canary, ``(k,)``, in any unit.
        heldout: the same for directions that were not added, ``(n,)``.
        delta: of (epsilon, delta).

    Raises:
        ConfigError: there are fewer than two of either.

    Example:
        >>> generator = np.random.default_rng(0)
        >>> found = estimate(generator.normal(1, 1, 500), generator.normal(0, 1, 500), 1e-5)
        >>> found.low < 4.38 < found.high
        True

    """
    k, n = len(inserted), len(heldout)
    if min(k, n) < 2:
        raise ConfigError("an estimate of epsilon needs two canaries or more, better hundreds")
    apart = float(inserted.mean() - heldout.mean())
    squares = inserted.var() * k + heldout.var() * n
    deviation = math.sqrt(float(squares) / (k + n - 2))
    found = apart / deviation if deviation else math.copysign(math.inf, apart) if apart else 0.0
    half = 1.96 * math.sqrt((k + n) / (k * n) + found**2 / (2 * (k + n)))
    epsilon, low, high = (
        epsilon_of_gaussians(max(one, 0.0), delta) for one in (found, found - half, found + half)
    )
    return CanaryEstimate(epsilon, low, high, delta, found, k)


def epsilon_of_gaussians(separation: float, delta: float) -> float:
    """The smallest epsilon at delta that separates N(separation, 1) from N(0, 1).

    By the exact trade-off (Balle and Wang 2018, theorem 8). The Gaussian mechanism of multiplier z
    has a separation of 1 / z, and R rounds of it sqrt(R) / z.

    Example:
        >>> round(epsilon_of_gaussians(1.0, 1e-5), 3), epsilon_of_gaussians(0.0, 1e-5)
        (4.377, 0.0)

    """

    def over(epsilon: float) -> float:
        near, far = separation / 2 - epsilon / separation, -separation / 2 - epsilon / separation
        return float(ndtr(near) - np.exp(epsilon + log_ndtr(far))) - delta

    if separation == math.inf:
        return math.inf
    if separation == 0 or over(0.0) <= 0:
        return 0.0
    most = separation**2 / 2 + separation * math.sqrt(2 * math.log(1 / delta))
    return float(brentq(over, 0.0, most, xtol=1e-9))
