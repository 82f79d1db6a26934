"""The server's check that masks have cancelled: exact where silos alone could not tell."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedml_keylock.errors import UpdateRefused
from fedml_keylock.host.averaging import Averages
from fedml_keylock.locks.rotated import Masks, scales_of
from fedml_keylock.locks.rotated.turns import Part

PARTS = (Part("parameters", ("w",)), Part("mean", ("mean",)))


def masked(samples, seed=0):
    """What silos of so many samples send of nearly the same state."""
    draw = torch.Generator().manual_seed(seed)
    own = {"w": torch.randn(40, 25, generator=draw), "mean": torch.zeros(8)}
    scales, sent = scales_of(PARTS, own), []
    for silo in range(len(samples)):
        pairs = {o: bytes([min(o, silo), max(o, silo)] * 16) for o in range(len(samples))}
        del pairs[silo]
        masks = Masks.of(silo, pairs, dict(enumerate(samples)))
        moved = {n: t + 0.01 * torch.randn(t.shape, generator=draw) for n, t in own.items()}
        sent.append({**masks.masked(moved, PARTS, scales, bytes(32), 0), "seen": torch.tensor(3)})
    return sent


def fedml_average(samples, states, *, weights=None):
    """As FedML's own aggregator makes it, in float32, one silo after the other."""
    weights, made = weights or [n / sum(samples) for n in samples], copy.deepcopy(states[0])
    for name in made:
        for index, (weight, state) in enumerate(zip(weights, states, strict=True)):
            made[name] = state[name] * weight + (made[name] if index else 0)
    return made


def came(samples, states):
    averages = Averages()
    for number, state in zip(samples, states, strict=True):
        averages.came(state, number)
    return averages


@given(samples=st.lists(st.integers(1, 60_000), min_size=2, max_size=12), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_the_average_that_fedml_makes_is_sent(samples, seed):
    states = masked(samples, seed)
    came(samples, states).check(fedml_average(samples, states), who="the server")


@pytest.mark.parametrize(
    "samples", [(5, 5, 6), (1000, 1001, 1002), (600, 600, 601), (20000, 20003, 19999)]
)
def test_one_of_silos_nearly_alike_that_are_weighed_alike_is_not(samples):
    states = masked(samples)
    averages, equal = came(samples, states), [1 / 3] * 3
    with pytest.raises(UpdateRefused, match=r"^server: w is not the average .*mask: false}"):
        averages.check(fedml_average(samples, states, weights=equal), who="server")


def test_nor_is_one_in_which_something_is_missing_or_another_model():
    states = masked((3, 4))
    good = fedml_average((3, 4), states)
    for odd in ({"w": good["w"]}, {**good, "mean": torch.zeros(1)}, states[0]):
        name = "w" if odd is states[0] else "mean"
        with pytest.raises(UpdateRefused, match=re.escape(f"{name} is not the average")):
            came((3, 4), states).check(odd, who="server")


def test_each_round_is_measured_by_its_own_updates_and_the_first_model_by_none():
    averages = Averages()
    averages.check({"w": torch.ones(2)}, who="server")
    for index in range(3):
        states = masked((7, 9), index)
        for number, state in zip((7, 9), states, strict=True):
            averages.came(state, number)
        averages.check(fedml_average((7, 9), states), who="server")
