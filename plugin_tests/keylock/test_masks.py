"""Masks: they cancel in FedAvg's average, and alone they are noise that hides what it is put on."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from fedml_keylock.keylock.key import Stream
from fedml_keylock.keylock.whole import NONE, Masks, scales_of
from fedml_keylock.keylock.whole import mask as masks_module
from fedml_keylock.keylock.whole.mask import LEAST, NARROW, WIDTH
from fedml_keylock.keylock.whole.turns import Part

PARTS = (Part("parameters", ("w", "b")), Part("norm.running_mean", ("norm.running_mean",)))
KEY = bytes(32)


def state(seed=0, size=6):
    draw = torch.Generator().manual_seed(seed)
    sizes = {"w": (size, 2), "b": (size,), "norm.running_mean": (size,)}
    return {name: torch.randn(shape, generator=draw) for name, shape in sizes.items()}


def silos(samples):
    """Each silo's masks, with a secret for each two."""
    secrets = {pair: bytes([index] * 32) for index, pair in enumerate(combinations(samples, 2))}
    return {
        rank: Masks.of(
            rank,
            {(a if rank == b else b): s for (a, b), s in secrets.items() if rank in (a, b)},
            samples,
        )
        for rank in samples
    }


def mask_of(masks, round_index=0, *, size=6, key=KEY):
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state(size=size).items()}
    return masks.masked(
        zeros, PARTS, dict.fromkeys((p.label for p in PARTS), 1.0), key, round_index
    )


@given(samples=st.lists(st.integers(1, 10_000), min_size=2, max_size=6), index=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_they_cancel_in_the_average_that_fedavg_makes(samples, index):
    samples = dict(enumerate(samples, 1))
    own = {rank: state(rank) for rank in samples}
    scales = scales_of(PARTS, state())
    average, wanted = ({n: torch.zeros_like(t).double() for n, t in state().items()} for _ in "ab")
    for rank, masks in silos(samples).items():
        share = samples[rank] / sum(samples.values())
        sent = masks.masked(own[rank], PARTS, scales, KEY, index)
        for name, tensor in sent.items():
            assert (tensor - own[rank][name]).abs().max() > 10
            average[name] += share * tensor.double()
            wanted[name] += share * own[rank][name].double()
    for name, tensor in wanted.items():
        # float32 of the widest mask, of the silo with the fewest samples
        bound = 1e-6 * WIDTH * len(samples) * max(scales.values())
        assert (average[name] - tensor).abs().max() < bound, name


def test_a_mask_is_normal_and_as_wide_as_is_said():
    (one, _) = silos({1: 1, 2: 1}).values()
    found = mask_of(one, size=20_000)
    for names, width in ((("w", "b"), WIDTH), (("norm.running_mean",), NARROW)):
        flat = torch.cat([found[name].flatten() for name in names]).double()
        assert kstest(flat.numpy() / width, "norm").pvalue > 1e-3
    # of as many silos as there are, each adds its own
    (four, *_) = silos(dict.fromkeys(range(1, 6), 1)).values()
    assert mask_of(four, size=20_000)["w"].std() == pytest.approx(2 * WIDTH, rel=0.02)


def test_none_is_like_another():
    """Other rounds, pairs, keys and parts have other masks: no difference of two takes them off."""
    one, two, three = silos({1: 1, 2: 1, 3: 1}).values()
    found = [mask_of(one), mask_of(one, 1), mask_of(two), mask_of(three)]
    found += [mask_of(one, key=bytes([1] * 32)), mask_of(one, 256)]
    flat = [torch.cat([t.flatten() for t in one.values()]) for one in found]
    flat.append(found[0]["norm.running_mean"] * WIDTH / NARROW)
    for first, second in combinations(flat, 2):
        length = min(len(first), len(second))
        for sign in (1, -1):
            assert not torch.isclose(first[:length], sign * second[:length], rtol=1e-3).any()


@pytest.mark.parametrize("byte", [0, 255])
def test_the_rarest_numbers_are_finite_and_not_on_a_grid(monkeypatch, byte):
    """Of 24 bits alone two neighbours five deviations out are 0.04 apart: many weights' size."""
    monkeypatch.setattr(Stream, "draw", lambda _self, count: bytes([byte] * count))
    assert 8 < abs(float(masks_module._noise(1, Stream(b"")))) < 9
    # some way from the end, neighbours are next to one another
    drawn = [bytes([0, at, 0, 64, 0, 0, 0, 0]) for at in (0, 16)]
    found = []
    for one in drawn:
        monkeypatch.setattr(Stream, "draw", lambda _self, _count, one=one: one)
        found.append(float(masks_module._noise(1, Stream(b""))))
    assert found[0] < -5
    assert 0 < found[1] - found[0] < 1e-4


def test_who_takes_them_off_has_what_was_there():
    one, _ = silos({1: 7, 2: 3}).values()
    scales = scales_of(PARTS, state())
    sent = one.masked(state(), PARTS, scales, KEY, 3)
    back = one.masked(sent, PARTS, scales, KEY, 3, undo=True)
    for name, tensor in state().items():
        torch.testing.assert_close(back[name], tensor, atol=2e-3, rtol=0)
    assert (one.masked(sent, PARTS, scales, KEY, 2, undo=True)["w"] - state()["w"]).abs().max() > 10
    untouched = NONE.masked(state(), PARTS, scales, KEY, 3)
    assert all(torch.equal(untouched[name], tensor) for name, tensor in state().items())


def test_what_is_nothing_is_hidden_too():
    assert scales_of(PARTS, {n: t * 0 for n, t in state().items()}) == {
        "parameters": LEAST,
        "norm.running_mean": LEAST,
    }
