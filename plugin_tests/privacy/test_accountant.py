"""What noise costs: dp-accounting's own figures, and nothing where they would be wrong."""

import math
import sys

import dp_accounting
import pytest
from dp_accounting import rdp

from fedml_keylock.errors import ConfigError
from fedml_keylock.privacy import accountant
from fedml_keylock.privacy.accountant import (
    ORDERS,
    Spending,
    epsilon_of,
    multiplier_for,
    rounds_within,
    spending_of,
)
from fedml_keylock.privacy.noise_config import NoiseConfig

DELTA = 1e-5


def event_of(one):
    event = dp_accounting.GaussianDpEvent(one.multiplier)
    if one.rate < 1:
        event = dp_accounting.PoissonSampledDpEvent(one.rate, event)
    return dp_accounting.SelfComposedDpEvent(event, one.count)


@pytest.mark.parametrize("delta", [1e-5, 1e-9])
@pytest.mark.parametrize(
    "spent",
    [
        [Spending(2.6, count=20)],
        [Spending(1.0, rate=0.01, count=1000)],
        [Spending(1.1), Spending(3.0, count=7), Spending(0.8, rate=0.05, count=30)],
    ],
)
def test_epsilon_is_dp_accountings_own(spent, delta):
    relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    own = rdp.RdpAccountant(ORDERS, relation)
    own.compose(dp_accounting.ComposedDpEvent([event_of(one) for one in spent]))
    assert epsilon_of(spent, delta) == pytest.approx(own.get_epsilon(delta), rel=1e-12)


@pytest.mark.parametrize("epsilon", [0.1, 1, 10, 100])
def test_orders_are_integers_and_dense_enough(epsilon):
    assert all(order == int(order) >= 2 for order in ORDERS)
    one = Spending(multiplier_for(epsilon, DELTA))
    every = rdp.RdpAccountant(range(2, 1025)).compose(event_of(one)).get_epsilon(DELTA)
    assert every <= epsilon_of([one], DELTA) <= 1.002 * every


@pytest.mark.parametrize("delta", [math.nan, 0.0, 1.0, -1e-5, math.inf])
def test_a_delta_that_is_none_is_refused(delta):
    with pytest.raises(ConfigError, match=r"^keylock\.noise\.delta: .* use one above 0, below 1"):
        epsilon_of([Spending(2.6)], delta)
    with pytest.raises(ConfigError, match=r"^keylock\.noise"):
        multiplier_for(1.0, delta)


def test_dp_accounting_takes_nan_for_no_cost():
    """Why it is refused."""
    assert rdp.RdpAccountant(ORDERS).compose(event_of(Spending(2.6))).get_epsilon(math.nan) == 0


def test_what_dp_accounting_has_no_digits_for_is_not_free():
    lost = Spending(1e8, rate=0.01, count=10**14)
    assert rdp.RdpAccountant(ORDERS).compose(event_of(lost)).get_epsilon(DELTA) == 0
    assert epsilon_of([lost], DELTA) > 0


@pytest.mark.parametrize(
    ("epsilon", "rate", "count"), [(0.1, 1.0, 20), (8, 1.0, 1), (100, 1.0, 3), (2, 0.02, 50)]
)
def test_the_multiplier_for_an_epsilon_is_the_least(epsilon, rate, count):
    found = multiplier_for(epsilon, DELTA, rate=rate, count=count)
    assert epsilon_of([Spending(found, rate, count)], DELTA) <= epsilon
    assert epsilon_of([Spending(found * (1 - 1e-3), rate, count)], DELTA) > epsilon


@pytest.mark.parametrize("epsilon", [math.nan, -1.0, 0.0, 1e30])
def test_an_epsilon_that_nothing_costs_is_refused(epsilon):
    with pytest.raises(ConfigError, match=r"^keylock\.noise\.epsilon: "):
        multiplier_for(epsilon, DELTA)


@pytest.mark.parametrize("wrong", [(math.nan,), (0.0,), (1.0, 0.0), (1.0, 1.5), (math.inf,)])
def test_no_noise_is_none_that_costs_little(wrong):
    with pytest.raises(ConfigError, match="no noise that can be accounted for"):
        Spending(*wrong)


def test_rounds_within_a_budget_are_all_that_fit():
    one, spent = Spending(2.6), [Spending(3.0, count=5)]
    for before in ([], spent):
        found = rounds_within(one, DELTA, 8.0, spent=before)
        costs = [epsilon_of([*before, Spending(2.6, count=found + k)], DELTA) for k in (0, 1)]
        assert costs[0] <= 8.0 < costs[1]
    assert rounds_within(one, DELTA, 8.0, most=3) == 3
    assert rounds_within(one, DELTA, 0.1) == 0


def test_a_thousand_rounds_are_accounted_for_at_once():
    accountant._divergences.cache_clear()
    one = Spending(1.0, rate=0.013)
    found = [epsilon_of([Spending(1.0, 0.013, rounds)], DELTA) for rounds in range(1, 1001)]
    assert found == sorted(found)
    assert found[0] == epsilon_of([one], DELTA) > 0
    assert accountant._divergences.cache_info().misses == 1


@pytest.mark.parametrize(
    ("fields", "spending"),
    [
        ({}, Spending(2.0)),
        ({"buffer_clip": 1.0}, Spending(2.0, count=2)),
        ({"adaptive": {}}, Spending(2.0)),
        ({"unit": "example", "rate": 0.1}, Spending(2.0, 0.1)),
        ({"unit": "example", "rate": 0.1, "steps": 5}, Spending(2.0, 0.1, 5)),
    ],
)
def test_what_a_round_costs(fields, spending):
    noise = NoiseConfig(clip=1.0, delta=DELTA, multiplier=2.0, **fields)
    assert spending_of(noise, 2.0) == spending


def test_without_dp_accounting_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedml-keylock\[noise\]'$"):
        epsilon_of([], DELTA)
