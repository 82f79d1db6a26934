"""The discrete Gaussian: its probabilities, and its draws."""

import math
from bisect import bisect_right
from decimal import Decimal, localcontext

import numpy as np
import pytest
from scipy import stats

from fedml_keylock.locks.sealed.gaussian import MOST, DiscreteGaussian, _weights
from fedml_keylock.locks.sealed.keystream import Keystream

STREAM = bytes(range(32))


@pytest.mark.parametrize("sigma", [0.5, 3.0, 17.3])
def test_its_weights_are_those_of_the_distribution(sigma):
    weights = _weights(sigma, 0)
    reach = len(weights) // 2
    assert sum(weights) == 2**128
    with localcontext() as context:
        context.prec = 80
        exact = [
            (-(Decimal(x) ** 2) / (2 * Decimal(sigma) ** 2)).exp() for x in range(-reach, reach + 1)
        ]
        total = sum(exact)
        worst = max(
            abs(Decimal(w) - e / total * 2**128) for w, e in zip(weights, exact, strict=True)
        )
    assert worst <= len(weights)  # the middle has what all others are rounded by


def test_a_draw_is_looked_up_to_the_last_of_its_bits():
    """Guards the way on where 16 and 64 bits do not decide."""
    gauss = DiscreteGaussian(17.3)
    weights = _weights(17.3, 0)
    bounds = np.cumsum(np.array([w & (2**112 - 1) for w in weights], dtype=object)).tolist()
    asked = [b + d for b in bounds[:-1] for d in (-1, 0, 1) if 0 <= b + d < bounds[-1]]
    high = np.array([u >> 64 for u in asked], dtype=np.uint64)
    low = np.array([u & (2**64 - 1) for u in asked], dtype=np.uint64)
    assert gauss._looked_up(high, low).tolist() == [bisect_right(bounds, u) for u in asked]
    # and 16 bits decide what 16 bits can
    often = np.array([w >> 112 for w in weights])
    values, counts = np.unique(gauss._table[: gauss._decided], return_counts=True)
    assert counts.tolist() == often[often > 0].tolist()
    assert (values == np.flatnonzero(often) - len(weights) // 2).all()
    assert bounds[-1] >> 112 == 2**16 - gauss._decided


@pytest.mark.parametrize("sigma", [0.8, 20.0, 63.9, 64.0, 1000.0, 2.0**15, MOST])
def test_a_million_draws_have_the_claimed_variance_and_shape(sigma):
    drawn = DiscreteGaussian(sigma).draw(1_000_000, Keystream(STREAM)).astype(np.float64)
    assert drawn.var() / sigma**2 == pytest.approx(1, abs=0.02)
    assert abs(drawn.mean()) < 5 * sigma / 1000
    if sigma < 64:
        reach = math.ceil(4 * sigma)
        places = np.arange(-reach, reach + 1)
        density = np.exp(-(places**2) / (2 * sigma**2))
        wanted = density / np.exp(-(np.arange(-99 * reach, 99 * reach) ** 2) / 2 / sigma**2).sum()
        found = np.array([(drawn == place).sum() for place in places])
        inside = found.sum()
        assert stats.chisquare(found, wanted / wanted.sum() * inside).pvalue > 1e-4
    else:
        even = drawn + np.random.default_rng(0).uniform(-0.5, 0.5, len(drawn))
        assert stats.kstest(even, "norm", (0, sigma)).pvalue > 1e-4
        # neither of the two draws shows: what is left by the stretch is as good as uniform
        stretch = math.isqrt(int(sigma / 2))
        left = np.bincount(drawn.astype(np.int64) % stretch, minlength=stretch)
        assert stats.chisquare(left).pvalue > 1e-4


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, 2 * MOST])
def test_a_deviation_that_is_none_is_refused(sigma):
    with pytest.raises(ValueError, match="deviation"):
        DiscreteGaussian(sigma)
