"""Epsilon as canaries show it (arXiv 2302.03098)."""

import math

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent
from dp_accounting.pld import PLDAccountant

from fedml_keylock.errors import ConfigError
from fedml_keylock.privacy.canaries import Canaries, directions, epsilon_of_gaussians, estimate

DELTA = 1e-5
SIZE, COUNT = 10_000, 200


def seen(multiplier, *, rounds=1, added=True, clip=0.7, seed=0):
    """Canaries and the sums of a Gaussian mechanism, which also hold an update."""
    generator = np.random.default_rng(seed)
    canaries = Canaries(COUNT, SIZE, b"a seed of the tests")
    update = np.full(SIZE, clip / math.sqrt(SIZE))
    for index in range(rounds):
        total = update * (-1) ** index + generator.normal(0, multiplier * clip, SIZE)
        canaries.see(total + added * canaries.added(clip), clip)
    return canaries


@pytest.mark.parametrize("multiplier", [0.5, 1.0, 4.0])
def test_epsilon_of_two_gaussians_is_the_accountants(multiplier):
    accountant = PLDAccountant().compose(GaussianDpEvent(multiplier))
    found = epsilon_of_gaussians(1 / multiplier, DELTA)
    assert found == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-3)


@pytest.mark.parametrize(("separation", "least"), [(100.0, 5000), (1e4, 5e7)])
def test_what_has_no_noise_has_a_large_epsilon(separation, least):
    assert least < epsilon_of_gaussians(separation, DELTA) < 2 * least


@pytest.mark.parametrize(("multiplier", "rounds"), [(1.0, 1), (2.6, 1), (3.0, 9)])
@pytest.mark.parametrize("final", [False, True])
def test_the_estimate_is_near_the_mechanisms_own_epsilon(multiplier, rounds, final):
    found = seen(multiplier, rounds=rounds).estimate(DELTA, final=final)
    exact = epsilon_of_gaussians(math.sqrt(rounds) / multiplier, DELTA)
    assert found.low < exact < found.high
    assert found.epsilon == pytest.approx(exact, abs=1.2)
    assert found.count == COUNT


def test_without_noise_it_is_large():
    found = seen(0.0).estimate(DELTA)
    assert found.low > 40
    # what is left is what the other canaries are to each
    assert found.separation == pytest.approx(math.sqrt(SIZE / COUNT), rel=0.1)


def test_of_canaries_that_were_not_added_it_is_near_0():
    found = seen(1.0, added=False).estimate(DELTA)
    assert found.epsilon < 0.6
    assert found.low == 0


def test_a_round_with_less_noise_counts_for_more_to_who_sees_all():
    canaries = Canaries(COUNT, SIZE, b"a seed of the tests")
    generator = np.random.default_rng(1)
    for multiplier in (0.5, 20.0):
        canaries.see(canaries.added(1.0) + generator.normal(0, multiplier, SIZE), 1.0)
    every, final = canaries.estimate(DELTA), canaries.estimate(DELTA, final=True)
    assert every.low < epsilon_of_gaussians(math.hypot(2, 1 / 20), DELTA) < every.high
    assert final.high < every.low


def test_canaries_that_are_in_some_sums_only_tell_less():
    canaries = Canaries(COUNT, SIZE, b"a seed of the tests", rate=0.25)
    generator, rounds = np.random.default_rng(1), 36
    for _ in range(rounds):
        canaries.see(canaries.added(1.0) + generator.normal(0, 1.0, SIZE), 1.0)
    assert not np.array_equal(canaries.added(1.0), canaries.added(1.0))
    found = canaries.estimate(DELTA)
    # a quarter of what all rounds would give, 6; which rounds is a noise of its own
    assert found.separation == pytest.approx(1.5, abs=0.6)


def test_directions_are_unit_vectors_apart_and_come_again():
    first = np.stack([*directions(b"seed", 20, 1000)])
    again = np.stack([*directions(b"seed", 20, 1000)])
    others = np.stack([*directions(b"seed", 20, 1000, first=20)])
    assert np.array_equal(first, again)
    assert np.linalg.norm(first, axis=1) == pytest.approx(np.ones(20))
    assert abs(first @ others.T).max() < 0.2
    assert not np.allclose(first, np.stack([*directions(b"speed", 20, 1000)]))
    assert Canaries(2, 9).seed != Canaries(2, 9).seed


def test_the_interval_holds_the_truth_as_often_as_it_says():
    generator, exact = np.random.default_rng(2), epsilon_of_gaussians(1.0, DELTA)
    found = [
        estimate(generator.normal(1, 1, 100), generator.normal(0, 1, 100), DELTA)
        for _ in range(300)
    ]
    assert 0.92 < np.mean([one.low < exact < one.high for one in found]) < 0.98


def test_one_canary_is_too_few():
    with pytest.raises(ConfigError, match="two canaries or more"):
        estimate(np.ones(1), np.ones(5), DELTA)


def test_it_says_that_it_is_no_bound():
    assert "an estimate by 200 canaries and no bound" in str(seen(1.0).estimate(DELTA))
