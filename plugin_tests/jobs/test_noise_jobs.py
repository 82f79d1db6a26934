"""Real jobs under noise: they end where their budget does, and count each silo's rounds."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_matrix import ONE_PROCESS, SIMULATED, ended, models

from fedml_keylock.host.job_configuration import schedule_of
from fedml_keylock.privacy.accountant import Spending, epsilon_of
from fedml_keylock.privacy.ledger import Ledger

Z = 2.0
NOISE = {"clip": 1.0, "multiplier": Z, "delta": 1e-5}
PLANNED = 5


def cost(rounds):
    return epsilon_of([Spending(Z, count=rounds)], 1e-5)


def settings(**noise):
    return {"colluders": 0, "noise": NOISE | noise}


def spent(job, silo):
    return Ledger(job.folder / "keylock_vault", silo, "silo").read()


def told(job):
    """What silos' logs say: (silo, round) to epsilon."""
    found = re.findall(r"silo (\d), round (\d): epsilon ([\d.]+) at delta 1e-05", job.output)
    return {(int(silo), int(index)): float(epsilon) for silo, index, epsilon in found}


def test_a_job_ends_with_its_budget_and_writes_its_model(run_job):
    asked = settings(stop_at=cost(2) + 1e-6) | {"save_model": "final"}
    job = ended(run_job(settings=asked, comm_round=PLANNED))
    assert job.output.count("training ends after 2 of 5 rounds, which cost epsilon") == 3
    for silo in (0, 1):
        assert spent(job, silo).rounds == 2
        assert len(models(job, silo + 1)) == 2
        for index in (0, 1):
            assert told(job)[silo, index] == pytest.approx(cost(index + 1), abs=0.01)
    assert len(told(job)) == 4
    finals = [load_file(job.folder / "final" / f"silo-{silo}.safetensors") for silo in (0, 1)]
    assert torch.equal(finals[0]["3.weight"], finals[1]["3.weight"])
    assert job.output.count("noise over signal: ") == 2


@pytest.mark.long
def test_a_budget_that_was_spent_before_ends_a_job_before_anything_is_sent(run_job, tmp_path):
    vault = tmp_path / "vault"
    Ledger(vault, 1, "silo").add(Spending(Z))
    asked = settings(stop_at=cost(2) + 1e-6) | {"vault": str(vault)}
    job = run_job(settings=asked, comm_round=2)
    assert job.status != 0
    assert len(job.ours) == 1
    assert "silo 1 has spent epsilon" in job.ours[0]
    assert "of 2 more 1 fit" in job.ours[0]
    assert not [models(job, rank) for rank in (0, 1, 2) if models(job, rank)]


TURNS = {"client_num_in_total": 4, "client_num_per_round": 2, "comm_round": 4}


@pytest.mark.long
@pytest.mark.parametrize(
    "kind",
    [{}, SIMULATED, ONE_PROCESS | {"client_num_in_total": 4}],
    ids=["cross_silo", "simulation", "one_process"],
)
def test_each_silo_counts_the_rounds_that_it_is_chosen_for(kind, run_job):
    from types import SimpleNamespace

    changes = TURNS | kind
    ranks = 1 if kind.get("backend") == "sp" else 3
    job = ended(run_job(settings=settings(), ranks=ranks, **changes))
    where = kind.get("training_type", "cross_silo")
    schedule = schedule_of(SimpleNamespace(training_type=where, **TURNS))
    taken = [silo for silos in schedule.rounds for silo in silos]
    assert [spent(job, silo).rounds for silo in range(4)] == np.bincount(
        taken, minlength=4
    ).tolist()
    said = told(job)
    assert {index for _, index in said} == {0, 1, 2, 3}
    assert {silo for silo, _ in said} == {*taken}
    assert len(said) == 8
    for index, silos in enumerate(schedule.rounds):
        for silo in silos:
            before = sum(silo in each for each in schedule.rounds[: index + 1])
            assert said[silo, index] == pytest.approx(cost(before), abs=0.01)


@pytest.mark.long
def test_a_job_over_grpc_ends_with_its_budget(run_grpc, tmp_path_factory):
    key = tmp_path_factory.mktemp("key") / "group"
    key.touch(mode=0o600)
    key.write_bytes(bytes(range(32)))
    solved = {"epsilon": cost(3), "multiplier": None, "stop_at": cost(2) + 1e-3}
    asked = settings(**solved) | {"group_key": str(key)}
    job = ended(run_grpc(settings=asked, comm_round=3))
    assert job.output.count("keylock.noise.stop_at: training ends after 2 of 3 rounds") == 3
    assert set(told(job)) == {(0, 0), (0, 1), (1, 0), (1, 1)}
