"""Canaries under the seal: what one silo adds to its release, and what the sums tell it."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from fedml_keylock import KeyLockConfig
from fedml_keylock.errors import ConfigError
from fedml_keylock.locks.sealed import canary_release
from fedml_keylock.locks.sealed.lock import SealedLock
from fedml_keylock.privacy.canaries import epsilon_of_gaussians
from fedml_keylock.privacy.noise_config import NoiseConfig

COUNT, CLIP = 600, 0.5


def rehearsed(silos=3, multiplier=0.25, rounds=1, count=COUNT, size=300, **fields):
    """The lock of silos in one process after some rounds with canaries, and the sum's size."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(size, 300), nn.BatchNorm1d(300), nn.Linear(300, 30))
    section = {"clip": CLIP, "multiplier": multiplier, "delta": 1e-5, "canaries": count} | fields
    lock = SealedLock(KeyLockConfig(colluders=1, noise=section))
    lock.remember(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(rounds):
        payloads = [
            {n: t + 0.01 * torch.randn(t.shape) if t.is_floating_point() else t for n, t in own}
            for own in [state.items()] * silos
        ]
        _, state = lock.rehearse(state, [(1.0, payload) for payload in payloads])
    return lock, sum(parameter.numel() for parameter in model.parameters())


def expected(multiplier, rounds, count, size):
    """The separation, and what it varies by: canaries are noise to one another, in all rounds."""
    separation = rounds / math.sqrt(rounds * multiplier**2 + rounds**2 * count / size)
    return separation, math.sqrt(2 / count + separation**2 / (4 * count))


def test_the_estimate_is_that_of_the_noise_that_one_colluding_silo_does_not_know():
    """Guards each silo's share of the noise, from outside: who adds one knows only his own."""
    lock, size = rehearsed()
    found = lock.privacy_estimate()
    separation, spread = expected(0.25, 1, COUNT, size)
    assert abs(found.separation - separation) < 4.5 * spread
    assert epsilon_of_gaussians(4.0, 1e-5) < found.bound
    assert f"the accountant's bound is {found.bound:.3g}" in str(found)


@pytest.mark.parametrize(
    "fields", [{"adaptive": {}}, {"buffer_clip": 0.1}, {"silos": 12, "multiplier": 4.0}]
)
def test_clips_that_follow_and_many_silos_change_nothing_of_it(fields):
    lock, size = rehearsed(**{"multiplier": 2.0, "rounds": 4, "count": 200, "size": 60} | fields)
    found = lock.privacy_estimate()
    separation, spread = expected(fields.get("multiplier", 2.0), 4, 200, size)
    assert abs(found.separation - separation) < 4.5 * spread


def test_canaries_that_are_not_added_are_not_found(monkeypatch):
    monkeypatch.setattr(canary_release, "_steps", lambda part, *_: np.zeros(len(part), np.int32))
    lock, _ = rehearsed(count=200, size=60)
    assert abs(lock.privacy_estimate().separation) < 0.5


def test_without_canaries_there_is_no_estimate():
    assert rehearsed(count=0, size=60)[0].privacy_estimate() is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"canaries": 1}, "one tells nothing"),
        ({"canaries": 9, "unit": "example", "rate": 0.1, "steps": 2}, "steps above 1"),
    ],
)
def test_canaries_that_tell_nothing_are_refused(fields, said):
    with pytest.raises(ConfigError, match=f"keylock.noise.canaries: .*{said}"):
        NoiseConfig(**{"clip": 1.0, "multiplier": 1.0, "delta": 1e-5} | fields)
