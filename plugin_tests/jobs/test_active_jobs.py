"""A server that attacks in a real job: what it sends, what it reads, and which silos refuse it."""

from __future__ import annotations

import pytest
import torch
from job_parts import mlp
from safetensors.torch import load_file

from fedml_keylock.evaluation.matching import match
from fedml_keylock.evaluation.metrics import psnr

EACH = 8
"""Images of a silo: one step."""
ATTACKS = "this server ATTACKS the silos: in round 0 it sends a model made by "
SERVER, SILO, SILOS = 0, 1, 2


@pytest.fixture(scope="session")
def attacked(run_job):
    def attacked(active, settings, **changes):
        section = {"active": active, "loss": "CrossEntropyLoss"} | changes.pop("section", {})
        return run_job(
            "mlp",
            settings=settings,
            enable_attack=True,
            attack_type="gradient_inversion",
            gradient_inversion=section,
            batch_size=EACH,
            **changes,
        )

    return attacked


def truth(silo):
    """The images that a silo of the job trains on."""
    images = torch.rand(96, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    return images[EACH * silo : EACH * (silo + 1)]


def found(job, attack):
    """How many of both silos' images the server has, at 40 dB."""
    path = job.folder / "leakage" / f"{attack}-oblivious.safetensors"
    count = 0
    for silo, made in enumerate(load_file(path)["images"]):
        true = truth(silo)
        count += int((psnr(made[match(made, true)], true) > 40).sum())
    return count


def models(job, rank):
    """The models that a rank sent, by the types of its messages in their order.

    FedML's server may send the first model twice.
    """
    sent = {}
    for entries in job.decoded(rank):
        if entries.get("model_params") is not None:
            sent.setdefault(entries["msg_type"], []).append(entries["model_params"])
    return list(sent.values())


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_an_armed_model_reads_an_undefended_job_and_no_sealed_one(attacked):
    plain, sealed = attacked("imprint", None), attacked("imprint", {})
    for job in (plain, sealed):
        assert job.status == 0, job.output[-3000:]
        assert sum(ATTACKS + "imprint" in line for line in job.ours) == 1, job.ours
    assert found(plain, "imprint") >= EACH
    assert found(sealed, "imprint") == 0
    # to both silos: the armed model; in the next round the one that was to be sent; an average
    first, later = models(plain, SERVER)
    torch.manual_seed(0)
    own = mlp().state_dict()
    assert not any(same(own, state) for state in first)
    assert all(same(first[0], state) for state in first)
    assert all(same(own, state) for state in later[:SILOS])
    assert not any(same(own, state) for state in later[SILOS:])
    # a sealed job has nothing else than the average of the armed one to go on from
    _, later = models(sealed, SERVER)
    assert {state["1.weight"].dtype for state in later} == {torch.int32}


@pytest.mark.long
def test_silos_compare_first_models_so_that_no_silo_has_one_of_its_own(attacked):
    plain, sealed = attacked("inconsistent_models", None), attacked("inconsistent_models", {})
    assert plain.status == 0, plain.output[-3000:]
    first, _ = models(plain, SERVER)
    assert not all(same(first[0], state) for state in first)
    assert sealed.status != 0
    ours = [line for line in sealed.ours if ATTACKS not in line]
    assert ours, sealed.output[-3000:]
    for line in ours:
        assert "has received another model than silo" in line
        assert "nothing is sent" in line
    assert not models(sealed, SILO)


@pytest.mark.long
@pytest.mark.parametrize("pinned", ["own", "ab" * 32])
def test_a_silo_that_pins_the_first_model_refuses_an_armed_one(pinned, attacked):
    job = attacked("imprint", {"first_model": pinned})
    assert job.status != 0
    ours = [line for line in job.ours if ATTACKS not in line]
    assert ours, job.output[-3000:]
    for line in ours:
        assert f"is not what keylock.first_model asks for ({pinned})" in line
    assert not models(job, SILO)


@pytest.mark.long
@pytest.mark.parametrize(
    ("active", "settings"),
    [("trap_weights", None), ("trap_weights", {}), ("imprint", {"lock": "rotated"})],
)
def test_every_active_server_reads_undefended_jobs_only(active, settings, attacked):
    job = attacked(active, settings)
    assert job.status == 0, job.output[-3000:]
    assert (found(job, active) > 0) == (settings is None)


@pytest.mark.long
def test_a_later_round_can_be_attacked_where_its_model_is_in_the_open(attacked):
    job = attacked("imprint", None, section={"rounds": [1]}, comm_round=3)
    assert job.status == 0, job.output[-3000:]
    assert any("in round 1 it sends" in line for line in job.ours)
    assert found(job, "imprint") >= EACH
