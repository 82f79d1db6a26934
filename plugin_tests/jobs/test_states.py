"""What models really keep in their states (`states_job.py`), and numbers of samples of any kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_matrix import ended
from test_sealed_jobs import assert_stopped

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def run(run_script):
    def run(settings, samples):
        files = [Path(__file__).with_name("states_job.py")]
        env = {"JOB_SAMPLES": samples}
        return run_script(f"states-{samples}", "states_job.py", files, settings, env=env)

    return run


def held(job):
    """What each silo held at the end."""
    return [torch.load(job.folder / f"held-{rank}.pt")[-1] for rank in (1, 2)]


@pytest.fixture(scope="module")
def plain(run):
    return held(ended(run(None, "list")))


def constants(state):
    """Guards what is asked of a state: the mask bit for bit, and each index."""
    mask = torch.full((5, 5), -torch.inf).triu(1)
    return state["mask"].equal(mask), state["index"].flatten().equal(torch.arange(169))


def test_plain_fedml_cuts_integers_off(plain):
    """The control: what FedML averages as floating point is below what all silos have."""
    assert [constants(state) for state in plain] == [(True, False)] * 2
    assert int((plain[0]["index"].flatten() < torch.arange(169)).sum()) > 20


def test_sealed_silos_hold_what_they_hold_without_a_lock(run, plain):
    """Samples come from a mapping that can only be indexed, as fractions."""
    sealed = held(ended(run({}, "lazy")))
    for state, wanted in zip(sealed, plain, strict=True):
        assert constants(state) == (True, True)
        assert state["steps"] == 6
        for name, tensor in wanted.items():
            if tensor.is_floating_point() and name != "mask":
                assert torch.allclose(state[name], tensor, rtol=1e-6, atol=1e-5), name


def test_under_the_papers_lock_constants_stay_and_counts_are_whole(run):
    job = ended(run({"lock": "paper"}, "missing"))
    for state in [*held(job), torch.load(job.folder / "server.pt")]:
        assert constants(state) == (True, True)
        assert state["steps"] == 6


def test_a_silo_that_weighs_nothing_is_refused_before_it_trains(run):
    job = run({}, "none")
    assert_stopped(job, ["number of samples, dataset[4][1],", "leave a silo without data out"])
    assert not (job.folder / "held-2.pt").exists()
