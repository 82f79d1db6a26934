"""Computes epsilon with dp-accounting, and the multiplier that a given epsilon needs.

The noise under the seal is discrete. At integer orders the Renyi divergence of integer shifts of a
discrete Gaussian, also Poisson-sampled, equals the continuous Gaussian's: the sum of
exp(-x^2 / 2 sigma^2) over the integers does not change when x is shifted by one. So this module
uses integer orders only, and no privacy loss distributions, for which this does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..errors import ConfigError
from .noise_config import NoiseConfig

__all__ = ["Spending", "epsilon_of", "multiplier_for", "rounds_within", "spending_of"]

ORDERS = (*range(2, 65), *range(68, 257, 4), *range(288, 1025, 32))
"""Orders of Renyi divergences. The best for an epsilon of 100 is 2, for 0.1 some hundreds."""
MOST = 10**6
"""The most rounds that are counted."""
LEAST = 1e-4
"""The smallest multiplier to search for; a tenth of it is the tolerance of the search."""


@dataclass(frozen=True)
class Spending:
    """Compositions of one Gaussian mechanism, Poisson-sampled if the rate is below 1.

    Attributes:
        multiplier: standard deviation of the noise in the sum over the clip.
        rate: the probability that a unit takes part.
        count: how many compositions.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> Spending(2.6, count=20).rate
        1.0

    """

    multiplier: float
    rate: float = 1.0
    count: int = 1

    def __post_init__(self) -> None:
        # written so that NaN is refused
        if not (0 < self.multiplier < float("inf") and 0 < self.rate <= 1 and self.count >= 0):
            raise ConfigError(f"keylock.noise: {self} is no noise that can be accounted for")


def epsilon_of(spendings: Iterable[Spending], delta: float) -> float:
    """Epsilon at delta, by dp-accounting's Renyi accountant.

    Neighbours are with and without one unit (dp-accounting's ADD_OR_REMOVE_ONE).

    Args:
        spendings: all are composed.
        delta: above 0 and below 1.

    Raises:
        ConfigError: delta is out of range, or dp-accounting is not installed.

    Example:
        >>> round(epsilon_of([Spending(2.6, count=20)], 1e-5), 2)
        9.01
        >>> epsilon_of([], 1e-5)
        0.0

    """
    if not 0 < delta < 1:  # for NaN dp-accounting returns 0
        raise ConfigError(
            f"keylock.noise.delta: {delta!r} is not allowed: use one above 0, below 1"
        )
    import numpy as np

    rdp = _library().rdp
    spent = [one for one in spendings if one.count]
    if not spent:
        return 0.0
    total = sum(one.count * _divergences(one.multiplier, one.rate) for one in spent)
    # where its sums lose all digits, dp-accounting takes negative numbers and NaN for no cost
    known = np.where(np.isfinite(total) & (total >= 0), total, np.inf)
    return float(rdp.compute_epsilon(ORDERS, known, delta)[0])


def multiplier_for(epsilon: float, delta: float, *, rate: float = 1.0, count: int = 1) -> float:
    """The smallest multiplier at which `count` compositions cost at most epsilon.

    Args:
        epsilon: above 0.
        delta: above 0 and below 1.
        rate: see `Spending`.
        count: see `Spending`.

    Raises:
        ConfigError: there is none, an argument is out of range, or dp-accounting is not installed.

    Example:
        >>> round(multiplier_for(8, 1e-5, count=20), 2)
        2.85

    """
    library = _library()
    try:
        found = float(
            library.calibrate_dp_mechanism(
                _accountant,
                lambda tried: library.SelfComposedDpEvent(_event(tried, rate), count),
                epsilon,
                delta,
                library.LowerEndpointAndGuess(LEAST, 1.0),
                tol=LEAST / 10,
            )
        )
    except (ValueError, library.mechanism_calibration.NoBracketIntervalFoundError):
        found = math.nan
    # its search does not know that `epsilon_of` counts lost digits as infinite
    fits = found > 0 and epsilon_of([Spending(found, rate, count)], delta) <= epsilon
    if not (fits and epsilon > 0):
        raise ConfigError(
            f"keylock.noise.epsilon: {epsilon!r} is not allowed: no multiplier from {LEAST:g} on "
            f"costs that at delta {delta:g}"
        )
    return found


def rounds_within(
    one: Spending, delta: float, budget: float, *, spent: Iterable[Spending] = (), most: int = MOST
) -> int:
    """How many rounds a budget allows.

    Args:
        one: the cost of a round.
        delta: above 0 and below 1.
        budget: an epsilon.
        spent: what was spent before.
        most: where to stop counting.

    Raises:
        ConfigError: delta is out of range, or dp-accounting is not installed.

    Example:
        >>> rounds_within(Spending(2.6), 1e-5, 8.0)
        16

    """
    before = list(spent)

    def fits(rounds: int) -> bool:
        more = Spending(one.multiplier, one.rate, rounds * one.count)
        return epsilon_of([*before, more], delta) <= budget

    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def spending_of(noise: NoiseConfig, multiplier: float) -> Spending:
    """The cost to a unit when its silo takes part in one round.

    A clip that follows the norms adds no cost: the noise on values is enlarged so that it and the
    noise on the count together have the one multiplier.

    Args:
        noise: the section.
        multiplier: the section's, or the solved one.

    Example:
        >>> spending_of(NoiseConfig(clip=1, delta=1e-5, multiplier=2, buffer_clip=1), 2.0)
        Spending(multiplier=2.0, rate=1.0, count=2)

    """
    if noise.unit == "silo":
        # parameters and buffers are clipped and noised separately
        return Spending(multiplier, count=1 if noise.buffer_clip is None else 2)
    return Spending(multiplier, noise.rate or 1.0, noise.steps)


@lru_cache(maxsize=256)
def _divergences(multiplier: float, rate: float) -> Any:
    """The Renyi divergences of one composition, at each of ORDERS."""
    return _accountant().compose(_event(multiplier, rate)).rdp


def _event(multiplier: float, rate: float) -> Any:
    library = _library()
    event = library.GaussianDpEvent(multiplier)
    return event if rate == 1 else library.PoissonSampledDpEvent(rate, event)


def _accountant() -> Any:
    library = _library()
    return library.rdp.RdpAccountant(ORDERS, library.NeighboringRelation.ADD_OR_REMOVE_ONE)


def _library() -> Any:
    try:
        import dp_accounting
        import dp_accounting.rdp
    except ModuleNotFoundError:
        raise ConfigError(
            "keylock.noise: it needs dp-accounting: pip install 'fedml-keylock[noise]'"
        ) from None
    return dp_accounting
