"""A clip that follows a quantile (Andrew et al. 2021)."""

import math

import numpy as np
import pytest

from fedml_keylock.errors import ConfigError
from fedml_keylock.privacy.adaptive import QuantileClip, vote
from fedml_keylock.privacy.noise_config import AdaptiveClip


@pytest.mark.parametrize(
    ("deviation", "multiplier", "silos", "sigma_b"),
    [(None, 1.0, 100, 5.0), (None, 2.6, 30, 5.2), (0.6, 1.0, 100, 0.6), (40.0, 0.3, 9, 40.0)],
)
def test_updates_and_votes_together_cost_what_the_multiplier_alone_does(
    deviation, multiplier, silos, sigma_b
):
    split = QuantileClip.of(AdaptiveClip(deviation=deviation), multiplier, silos)
    # theorem 1 of the paper, and the same as two Gaussians whose squared sensitivities add up
    assert split.multiplier == pytest.approx((multiplier**-2 - (2 * sigma_b) ** -2) ** -0.5)
    together = split.multiplier**-2 + split.votes**-2
    assert together == pytest.approx(multiplier**-2)
    assert split.votes == 2 * sigma_b


@pytest.mark.parametrize("deviation", [0.5, 0.3])
def test_a_count_that_costs_all_is_refused(deviation):
    with pytest.raises(ConfigError, match=r"adaptive.deviation: 0.\d leaves nothing .* above 0.5"):
        QuantileClip.of(AdaptiveClip(deviation=deviation), 1.0, 100)


def test_the_next_clip_is_the_papers_and_moves_by_no_more_than_it_may():
    split = QuantileClip.of(AdaptiveClip(quantile=0.8, rate=0.3), 1.0, 50)
    # 30 of 50 within the clip: 30 - 20 votes
    found = split.next(2.0, 10.0)
    assert found == pytest.approx(2.0 * math.exp(-0.3 * (0.6 - 0.8)), rel=2**-23)
    assert found == np.float32(found)
    assert split.next(2.0, 1e9) == split.next(2.0, 50.0) == pytest.approx(2 * math.exp(-0.06))
    assert split.next(2.0, -1e9) == split.next(2.0, -50.0) == pytest.approx(2 * math.exp(0.24))


@pytest.mark.parametrize("quantile", [0.5, 0.9])
def test_the_clip_finds_the_quantile_and_stays_there(quantile):
    generator = np.random.default_rng(0)
    split = QuantileClip.of(AdaptiveClip(quantile=quantile), 1.0, 200)
    clip, found = 0.01, []
    for _ in range(150):
        norms = generator.lognormal(1.0, 0.5, 200)
        votes = sum(vote(norm, clip) for norm in norms)
        clip = split.next(clip, votes + generator.normal(0, split.votes))
        found.append(clip)
    expected = np.quantile(generator.lognormal(1.0, 0.5, 100_000), quantile)
    assert np.mean(found[-50:]) == pytest.approx(expected, rel=0.1)
