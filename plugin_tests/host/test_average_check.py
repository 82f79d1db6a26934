"""The server's check that masks have cancelled: exact where silos alone could not tell."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedml_keylock.errors import UpdateRefused
from fedml_keylock.host.update_history import AverageCheck
from fedml_keylock.locks.job_key import JobKey
from fedml_keylock.locks.rotated.mask import masked, scales_of
from fedml_keylock.locks.rotated.turns import Part

PARTS = (Part("parameters", ("w",)), Part("mean", ("mean",)))


def uploads(samples, seed=0):
    """What silos of so many samples send of nearly the same state."""
    draw = torch.Generator().manual_seed(seed)
    own = {"w": torch.randn(40, 25, generator=draw), "mean": torch.zeros(8)}
    scales, sent = scales_of(PARTS, own), []
    for silo in range(len(samples)):
        pairs = {o: bytes([min(o, silo), max(o, silo)] * 16) for o in range(len(samples))}
        del pairs[silo]
        key = JobKey(bytes(32), silo, pairs, dict(enumerate(samples)))
        moved = {n: t + 0.01 * torch.randn(t.shape, generator=draw) for n, t in own.items()}
        sent.append({**masked(moved, PARTS, scales, key, 0), "seen": torch.tensor(3)})
    return sent


def fedml_average(samples, states, *, weights=None):
    """As FedML's own aggregator makes it, in float32, one silo after the other."""
    weights, made = weights or [n / sum(samples) for n in samples], copy.deepcopy(states[0])
    for name in made:
        for index, (weight, state) in enumerate(zip(weights, states, strict=True)):
            made[name] = state[name] * weight + (made[name] if index else 0)
    return made


def after(samples, states):
    average = AverageCheck()
    for number, state in zip(samples, states, strict=True):
        average.add(state, number)
    return average


@given(samples=st.lists(st.integers(1, 60_000), min_size=2, max_size=12), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_the_average_that_fedml_makes_is_sent(samples, seed):
    states = uploads(samples, seed)
    after(samples, states).check(fedml_average(samples, states), who="the server")


@pytest.mark.parametrize(
    "samples", [(5, 5, 6), (1000, 1001, 1002), (600, 600, 601), (20000, 20003, 19999)]
)
def test_an_average_that_weighs_nearly_alike_silos_alike_is_refused(samples):
    states = uploads(samples)
    average, equal = after(samples, states), [1 / 3] * 3
    with pytest.raises(UpdateRefused, match=r"^server: w is not the average .*mask: false}"):
        average.check(fedml_average(samples, states, weights=equal), who="server")


def test_an_average_that_lacks_something_or_is_another_model_is_refused():
    states = uploads((3, 4))
    good = fedml_average((3, 4), states)
    for odd in ({"w": good["w"]}, {**good, "mean": torch.zeros(1)}, states[0]):
        name = "w" if odd is states[0] else "mean"
        with pytest.raises(UpdateRefused, match=re.escape(f"{name} is not the average")):
            after((3, 4), states).check(odd, who="server")


def test_each_round_is_measured_by_its_own_updates_and_the_first_model_by_none():
    average = AverageCheck()
    average.check({"w": torch.ones(2)}, who="server")
    for index in range(3):
        states = uploads((7, 9), index)
        for number, state in zip((7, 9), states, strict=True):
            average.add(state, number)
        average.check(fedml_average((7, 9), states), who="server")


def test_what_one_model_is_measured_by_does_not_depend_on_how_often_it_is_sent():
    """The same object goes to every silo; and in the next round it is no average any more."""
    states, average = uploads((7, 9)), AverageCheck()
    sent = fedml_average((7, 9), states)
    for _ in range(2):
        for number, state in zip((7, 9), states, strict=True):
            average.add(state, number)
        for _ in range(3):
            average.check(sent, who="server")
    average.add(states[0], 7)
    with pytest.raises(UpdateRefused, match="is not the average"):
        average.check(sent, who="server")
