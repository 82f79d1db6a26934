"""What noise costs: epsilon by dp-accounting, and the multiplier that a wanted epsilon needs.

The noise under the seal is discrete. At integer orders the Renyi divergence of integer shifts of a
discrete Gaussian, and of its Poisson-sampled one, is the continuous Gaussian's: sums of
exp(-x^2 / 2 sigma^2) over the integers do not change when x is shifted by one. So only integer
orders are used here, and no privacy loss distributions, for which this is not so.
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
"""Of Renyi divergences. The best one for an epsilon of 100 is 2, of 0.1 some hundreds."""
MOST = 10**6
"""Rounds that are counted at most."""
LEAST = 1e-4
"""The least multiplier that is looked for; a tenth of it is how near it is found."""


@dataclass(frozen=True)
class Spending:
    """Compositions of one Gaussian mechanism, Poisson-sampled if the rate is below 1.

    Attributes:
        multiplier: standard deviation of the noise in the sum over the clip.
        rate: the probability that a unit takes part.
        count: how many compositions.

    Raises:
        ConfigError: one of them is out of range.

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
    """Epsilon at delta of what was spent, by dp-accounting's Renyi accountant.

    Neighbours are with and without one unit (dp-accounting's ADD_OR_REMOVE_ONE).

    Args:
        spendings: composed with one another.
        delta: above 0 and below 1.

    Raises:
        ConfigError: delta is out of range, or dp-accounting is not installed.

    Example:
        >>> round(epsilon_of([Spending(2.6, count=20)], 1e-5), 2)
        9.01
        >>> epsilon_of([], 1e-5)
        0.0

    """
    if not 0 < delta < 1:  # of NaN dp-accounting says that it costs nothing
        raise ConfigError(
            f"keylock.noise.delta: {delta!r} is not allowed: use one above 0, below 1"
        )
    import numpy as np

    rdp = _library().rdp
    spent = [one for one in spendings if one.count]
    if not spent:
        return 0.0
    total = sum(one.count * _divergences(one.multiplier, one.rate) for one in spent)
    # where its sums lose all digits, dp-accounting takes negative numbers, and NaN, for no cost
    known = np.where(np.isfinite(total) & (total >= 0), total, np.inf)
    return float(rdp.compute_epsilon(ORDERS, known, delta)[0])


def multiplier_for(epsilon: float, delta: float, *, rate: float = 1.0, count: int = 1) -> float:
    """The least multiplier of which so many compositions cost no more than an epsilon.

    Args:
        epsilon: above 0.
        delta: above 0 and below 1.
        rate: as of `Spending`.
        count: as of `Spending`.

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
    # it does not know of what `epsilon_of` makes of lost digits
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
        one: what a round costs.
        delta: above 0 and below 1.
        budget: an epsilon.
        spent: before them.
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
    """What it costs a unit that its silo takes part in one round.

    A clip that follows the norms costs nothing beside it: the noise on values is enlarged so that
    it and the noise on the count make one multiplier.

    Args:
        noise: the section.
        multiplier: the section's, or what was solved for.

    Example:
        >>> spending_of(NoiseConfig(clip=1, delta=1e-5, multiplier=2, buffer_clip=1), 2.0)
        Spending(multiplier=2.0, rate=1.0, count=2)

    """
    if noise.unit == "silo":
        # parameters and buffers are clipped, and drowned, each by themselves
        return Spending(multiplier, count=1 if noise.buffer_clip is None else 2)
    return Spending(multiplier, noise.rate or 1.0, noise.steps)


@lru_cache(maxsize=256)
def _divergences(multiplier: float, rate: float) -> Any:
    """Of one composition, at each of ORDERS."""
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
