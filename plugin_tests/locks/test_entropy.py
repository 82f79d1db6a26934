"""Where random numbers come from: the system's entropy, or a seed that only silos have."""

import hashlib
import os
import random

import numpy as np
import pytest
import torch

from fedml_keylock.locks.entropy import Stream, haar, normal, secret_uniform, seeded_uniform


def test_secrets_come_from_the_system_and_from_no_generator(monkeypatch):
    """FedML seeds all of them alike on every rank."""
    found, after = [], []
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        found.append(secret_uniform((64,)))
        after.append((random.random(), float(np.random.rand()), float(torch.rand(1))))
    # numbers of 24 bits: hardly any two are the same
    assert (found[0] == found[1]).float().mean() < 0.1
    assert after[0] == after[1]
    asked = []
    monkeypatch.setattr(os, "urandom", lambda count: asked.append(count) or bytes(count))
    assert not secret_uniform((3, 5)).any()
    assert normal((4,)).isfinite().all()
    assert haar(3).shape == (3, 3)
    assert asked == [4 * 15, 4 * 4, 4 * 9]


def test_numbers_from_the_system_are_uniform():
    numbers = secret_uniform((200_000,))
    assert numbers.dtype == torch.float32
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers, bins=20, min=0, max=1)
    # each is 10,000 give or take 97: seven standard deviations
    assert (counts - 10_000).abs().max() < 700
    assert len(numbers.unique()) > 190_000


def test_normal_numbers_are_normal():
    numbers = normal((200_000,), seeded_uniform(torch.Generator().manual_seed(0))).double()
    assert abs(numbers.mean()) < 0.02
    assert abs(numbers.std() - 1) < 0.02
    assert abs((numbers**4).mean() - 3) < 0.1


@pytest.mark.parametrize("extreme", [0.0, 1 - 2**-24])
def test_normal_numbers_are_finite_whatever_the_system_gives(extreme):
    assert normal((3,), lambda shape: torch.full(shape, extreme)).isfinite().all()


@pytest.mark.parametrize("size", [1, 2, 12, 64])
def test_a_matrix_is_orthogonal_and_not_trivial(size):
    matrix = haar(size)
    assert matrix.dtype == torch.float64
    assert torch.allclose(matrix @ matrix.T, torch.eye(size).double(), atol=1e-12)
    if size > 2:
        assert (matrix.abs() < 0.999).all()  # neither the identity nor a permutation


@pytest.mark.parametrize("size", [256, 512])
def test_a_wide_matrix_hides_every_number_behind_every_other(size):
    matrix = haar(size)
    # a sparse one would leave numbers alone, or among a few: here all weigh alike
    assert (matrix.abs() > 1e-6).double().mean() > 0.999
    # of so many normal entries the largest square is about 27 / size; above 45 once in 1e5 draws
    assert matrix.square().amax() < 45 / size
    assert 0.9 < float(matrix.std() * size**0.5) < 1.1


def test_orthogonal_matrices_favour_no_sign():
    """Without the signs of R's diagonal divided out, the trace is not centred at 0."""
    draws = seeded_uniform(torch.Generator().manual_seed(0))
    traces = torch.stack([haar(6, draws).trace() for _ in range(400)])
    # the trace of a matrix that is uniform over the group has mean 0 and variance 1
    assert abs(traces.mean()) < 0.25
    assert 0.7 < traces.std() < 1.3


class TestStream:
    """The same for all who have the seed."""

    def test_it_is_shake_256_of_the_seed_and_a_counter(self):
        stream, seed = Stream(b"seed"), hashlib.sha256(b"seed").digest()
        drawn = [stream.draw(40), stream.draw(7)]
        assert drawn == [
            hashlib.shake_256(seed + number.to_bytes(8, "big")).digest(count)
            for number, count in enumerate((40, 7))
        ]

    def test_signs_and_orders_are_of_all_kinds_and_none_more_often(self):
        stream = Stream(b"seed")
        signs = stream.signs(100_001)
        assert set(signs.tolist()) == {-1, 1}
        assert abs(float(signs.double().mean())) < 0.02  # six deviations
        orders = torch.stack([stream.order(5) for _ in range(4000)])
        assert torch.equal(orders.sort(1).values, torch.arange(5).expand(4000, -1))
        # where the first one goes: 800 times each, give or take 25
        assert (torch.bincount(orders.argsort(1)[:, 0]) - 800).abs().max() < 180
