"""A job's noise: solved for its rounds, refused where it would hide nothing, stopped in time."""

import pytest

from fedml_keylock.errors import ConfigError
from fedml_keylock.privacy.accountant import Spending, epsilon_of
from fedml_keylock.privacy.accounts import Accounts
from fedml_keylock.privacy.budget import Budget
from fedml_keylock.privacy.ledger import Page
from fedml_keylock.privacy.noise_config import NoiseConfig
from fedml_keylock.types import Schedule

DELTA = 1e-5


def budget(rounds=20, silos=10, colluders=0, each=None, **fields):
    chosen = {"multiplier": 2.0} if "epsilon" not in fields else {}
    noise = NoiseConfig(**{"clip": 1.0, "delta": DELTA} | chosen | fields)
    each = each or [tuple(range(silos))] * rounds
    return Budget.of(noise, colluders, Schedule(silos, tuple(each)))


def cost(rounds, multiplier=2.0):
    return epsilon_of([Spending(multiplier, count=rounds)], DELTA)


def test_epsilon_is_solved_for_the_silo_that_takes_part_most_often():
    each = [(0, 1), (0, 2), (0, 1), (2, 1)]
    found = budget(epsilon=2.0, silos=3, each=each)
    assert 1.999 < cost(3, found.multiplier) <= 2.0
    assert (found.rounds, found.most) == (4, 3)


def test_training_ends_before_a_silo_passes_its_budget():
    assert budget(stop_at=cost(20)).rounds == 20
    found = budget(stop_at=cost(7) + 1e-6)
    assert (found.rounds, found.most) == (7, 7)
    assert found.stops == (
        f"keylock.noise.stop_at: training ends after 7 of 20 rounds, which cost epsilon "
        f"{cost(7):.3g}; one more would pass {cost(7):g}"
    )
    # the third participation of silo 0 is in the last round
    each = [(0, 1), (0, 2), (1, 2), (1, 2), (0, 1)]
    assert budget(silos=3, each=each, stop_at=cost(2) + 1e-6).rounds == 3


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"silos": 3, "colluders": 3}, "of 3 silos in a round 3 know their own noise"),
        ({"silos": 1}, "of 1 silos in a round 1 know their own noise"),
        ({"delta": 0.1}, "keylock.noise.delta: 0.1 is not allowed with 10 silos"),
        ({"delta": 0.25}, "keylock.noise.delta: 0.25 is not allowed with 10 silos"),
        ({"stop_at": 0.5}, "keylock.noise.stop_at: one round costs epsilon 2.17"),
        ({"adaptive": {"deviation": 1.0}}, "keylock.noise.adaptive.deviation: 1 leaves nothing"),
    ],
)
def test_a_job_whose_noise_hides_nothing_is_refused(fields, said):
    with pytest.raises(ConfigError) as caught:
        budget(**fields)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_delta_is_held_to_a_silos_own_examples(tmp_path):
    unit = {"unit": "example", "rate": 0.1}
    noise = budget(delta=0.01, silos=200, **unit).noise  # of silos nothing is claimed
    accounts = Accounts(noise, 0, tmp_path)
    assert accounts.weigh(99) == 99
    with pytest.raises(ConfigError, match=r"0\.01 is not allowed with this silo's examples"):
        accounts.weigh(100)
    assert Accounts(budget().noise, 0, tmp_path).weigh(1e9) == 1


def test_what_a_vault_has_spent_leaves_fewer_rounds():
    found = budget(stop_at=cost(25), rounds=20)
    found.check_left(Page((Spending(2.0, count=5),), 5), 0, done=0)
    spent = Page((Spending(2.0, count=10),), 10)
    with pytest.raises(ConfigError) as caught:
        found.check_left(spent, 3, done=0)
    assert str(caught.value).startswith(
        f"keylock.noise.stop_at: silo 3 has spent epsilon {cost(10):.3g} of {cost(25):g}"
    )
    assert "of 20 more 15 fit" in str(caught.value)
    found.check_left(spent, 3, done=5)  # of which five are this job's
    budget().check_left(spent, 0, done=0)  # without a budget nothing is refused


@pytest.mark.parametrize(("colluders", "ratio"), [(0, 10.21), (1, 10.21), (10, 12.30)])
def test_noise_over_signal_of_lenet_with_thirty_silos(colluders, ratio):
    found = budget(silos=30, colluders=colluders, multiplier=2.6)
    assert found.noise_over_signal(13_426) == pytest.approx(ratio, abs=0.01)


def test_a_clip_that_follows_leaves_updates_a_little_more_noise():
    found = [budget(**more).noise_over_signal(100) for more in ({}, {"adaptive": {}})]
    assert found[1] == pytest.approx(found[0] / (1 - 1 / 4**2) ** 0.5)


def test_noise_over_signal_is_measured():
    """Of m silos with parts of the noise each, the average's length over that of one update."""
    import numpy as np

    found, draw = budget(silos=6, colluders=2, multiplier=1.3), np.random.default_rng(0)
    parts = draw.normal(0, 1.3 / np.sqrt(found.honest), (6, 50_000))
    assert np.linalg.norm(parts.mean(0)) == pytest.approx(found.noise_over_signal(50_000), rel=0.02)


@pytest.mark.parametrize(("steps", "silos"), [(1, 3 / 2), (4, 3)])
def test_of_examples_it_is_that_of_a_step_over_a_clipped_gradient(steps, silos):
    found = budget(silos=3, multiplier=1.5, unit="example", rate=0.2, steps=steps)
    expected = (100 * silos) ** 0.5 * 1.5 / 800
    assert found.noise_over_signal(100, examples=4_000) == pytest.approx(expected)
