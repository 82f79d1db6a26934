"""Ways of training of public code (`ways.py`): sealed they end where plain FedML's jobs end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_matrix import ended
from test_sealed_jobs import assert_near, assert_stopped

ROUNDS = 3
SCALE = {"scale": 4.0}
"""What is sent beside the model: control variates, and weights as float16."""
COARSE = {"bfloat": 2e-2, "half_sent": 2e-3}
"""Tolerance of what is averaged in a coarse type; of all others it is a hundred-thousandth."""
NAMES = (
    "fedavg",
    "fedprox",
    "ditto",
    "pfedme",
    "fedrep",
    "alternating",
    "fedbn",
    "by_data",
    "by_parameter",
    "scaffold",
    "fednova",
    "feddyn",
    "distilled",
    "moon",
    "sam",
    "ema",
    "kept_optimizer",
    "schedule",
    "checkpoints",
    "parallel",
    "tied",
    "bfloat",
    "half_sent",
    "frozen",
    "adapters",
    "accumulated",
    "differences",
    "warm_up",
    "fedsgd",
    "opposed",
    "random",
    "own_copy",
    "quantized",
    "fourier",
    "compiled",
    "gan",
    "normed",
    "table",
    "mixed_precision",
    "pruned",
    "own_classes",
    "odd",
    "workers",
)

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def run_ways(run_script):
    def run(settings, **env):
        files = [Path(__file__).with_name("ways.py")]
        changes = {"comm_round": ROUNDS, "fedprox_mu": 0.5}
        return run_script("ways", "ways.py", files, settings, env=env, **changes)

    return run


def held(job):
    """What each silo held after each exchange, way by way."""
    return [torch.load(job.folder / f"held-{rank}.pt") for rank in (1, 2)]


@pytest.fixture(scope="module")
def plain(run_ways):
    return held(ended(run_ways(None)))


@pytest.fixture(scope="module")
def sealed(run_ways):
    job = ended(run_ways(SCALE))
    assert job.ours == []
    assert "were clipped to the range of a round" not in job.output
    return held(job)


def test_all_ways_are_run(sealed):
    assert [[*exchange] for silo in sealed for exchange in silo] == [[*NAMES]] * 2 * (1 + ROUNDS)


@pytest.mark.parametrize("way", NAMES)
def test_silos_hold_what_they_hold_without_a_lock(way, sealed, plain):
    for silo, without in zip(sealed, plain, strict=True):
        for now, other in zip(silo, without, strict=True):
            assert_near(now[way], other[way], COARSE.get(way, 1e-5))
        first, last = silo[0][way], silo[-1][way]
        weights = [n for n, t in first.items() if t.is_floating_point() and t.numel()]
        assert max((last[name] - first[name]).abs().max() for name in weights) > 1e-2


@pytest.mark.parametrize(
    ("aggregator", "words"),
    [
        ("uniform", ["the job's aggregator weighs the silos by numbers of its own"]),
        ("clipping", ["aggregator changed sealed updates before they were averaged"]),
        ("optimizer", ["the job's aggregator failed on sealed updates", "super().aggregate"]),
        ("watching", ["the job's aggregator failed on sealed updates", "super().aggregate"]),
    ],
)
def test_what_a_server_does_with_numbers_ends_in_one_line(aggregator, words, run_ways):
    job = run_ways({}, JOB_WAYS="fedavg", JOB_AGGREGATOR=aggregator)
    assert_stopped(job, ["the server, round 0: ", *words])


def test_what_no_silo_has_received_wants_a_scale(run_ways):
    job = run_ways({}, JOB_WAYS="scaffold")
    assert_stopped(job, ["control", "the server has not sent", "keylock: {scale: LARGEST}"])
