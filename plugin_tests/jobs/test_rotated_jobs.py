"""Jobs under lock: rotated: they learn as without it, and what they send is rotated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from job_parts import Net
from test_matrix import KEPT, ONE_PROCESS, SIMULATED, ended, models
from test_wire import runs_of, windows

from fedml_keylock.builtin import keylock
from fedml_keylock.errors import ConfigError
from fedml_keylock.evaluation.capture import Capture
from fedml_keylock.locks.job_key import JobKey
from fedml_keylock.locks.rotated.round_rotation import RoundRotation, parts_of
from fedml_keylock.locks.vault.file import Stored

ROUNDS = 3
LOCK = {"lock": "rotated", "keep_history": True}


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    path = tmp_path_factory.mktemp("secret") / "group"
    path.touch(mode=0o600)
    path.write_bytes(bytes(np.random.default_rng(0).integers(0, 256, 32, dtype=np.uint8)))
    return path


def kept(job, silo=0):
    """What a silo's vault has of the lock, by short names."""
    stored = Stored.read(job.folder / "keylock_vault" / f"silo-{silo}.safetensors").state(None)
    return {name.removeprefix("rotated."): tensor for name, tensor in stored.items()}


def opened(job, state, round_index, silo=0):
    """A state of a round, as a silo that has the key reads it."""
    key = JobKey.from_tensor(kept(job, silo)["key"])
    return {**state, **RoundRotation(parts_of(Net()), key, round_index).rotate_back(state)}


def assert_near(one, other, tolerance=2e-4):
    for name, tensor in other.items():
        if not one[name].is_floating_point():  # a count of batches
            continue
        wrong = (one[name].double() - tensor.double()).abs().max().item()
        assert wrong <= tolerance, f"{name} differs by {wrong}"


def assert_far(one, other):
    for name, tensor in other.items():
        if tensor.is_floating_point() and tensor.numel() > 2:
            assert not torch.allclose(one[name], tensor, atol=1e-2), name


@pytest.fixture(scope="module")
def plain(run_job):
    """Three silos whose trainer and aggregator override every hook, without a lock."""
    return ended(run_job("custom", settings=None, ranks=4, comm_round=ROUNDS))


@pytest.fixture(scope="module")
def locked(run_job, secret):
    """The same under the lock, whose secret is a file's and what silos agree on."""
    settings = LOCK | {"group_key": str(secret)}
    return ended(run_job("custom", settings=settings, ranks=4, comm_round=ROUNDS))


def received_by(job, silos):
    """What every silo was sent, in order: the first model, and each round's average."""
    sent = models(job, 0)
    return [sent[0], *(sent[-silos * (ROUNDS - index)] for index in range(ROUNDS))]


def assert_learns_the_same(job, plain, silos):
    averages, without = received_by(job, silos), received_by(plain, silos)
    assert len({bytes(kept(job, silo)["key"].tolist()) for silo in range(silos)}) == 1
    assert_near(averages[0], without[0], 0.0)  # the server's first model is nobody's secret
    for index, (average, other) in enumerate(zip(averages[1:], without[1:], strict=True)):
        assert_near(opened(job, average, index), other)
        assert_far(average, other)
    for silo in range(silos):
        for index, (upload, other) in enumerate(
            zip(models(job, silo + 1), models(plain, silo + 1), strict=True)
        ):
            assert_near(opened(job, upload, index, silo), other, 1e-3)
            assert_far(upload, other)


def test_a_job_learns_what_it_learns_without_a_lock(locked, plain):
    assert_learns_the_same(locked, plain, 3)


@pytest.mark.long
def test_two_silos_learn_what_they_learn_without_a_lock(run_job):
    """With FedML's own trainer and aggregator, and no file."""
    plain, job = (ended(run_job(settings=s, comm_round=ROUNDS)) for s in (None, LOCK))
    assert_learns_the_same(job, plain, 2)


def test_neither_a_secret_nor_a_key_nor_a_weight_crosses_the_wire(locked, secret):
    crossed = locked.wire()
    for one in (secret.read_bytes(), bytes(kept(locked)["key"].tolist())):
        assert not any(one[at : at + 8] in crossed for at in range(len(one) - 7))
    seen = windows(crossed)
    first = received_by(locked, 3)[0]  # is everybody's: a bias in front of a norm stays what it was
    for rank in (1, 2, 3):
        for index, upload in enumerate(models(locked, rank)):
            for name, tensor in opened(locked, upload, index, rank - 1).items():
                if tensor.is_floating_point() and tensor.numel() > 2:
                    new = ~np.isin(runs_of(tensor), runs_of(first[name]))
                    assert not np.isin(runs_of(tensor)[new], seen).any(), f"{name} was sent"
            # the control: what was sent is found
            assert np.isin(runs_of(upload["3.weight"]), seen).all()


@pytest.mark.long
def test_silos_in_turn_rotate_alike(run_job):
    turns = {"client_num_in_total": 5, "client_num_per_round": 3, "comm_round": ROUNDS}
    plain = ended(run_job(settings=None, ranks=4, **turns))
    job = ended(run_job(settings=LOCK, ranks=4, **turns))
    silo = next(
        s for s in range(5) if (job.folder / f"keylock_vault/silo-{s}.safetensors").exists()
    )
    final, other = models(job, 0)[-1], models(plain, 0)[-1]
    # without the plugin FedML takes silo 0 for none, and trains another one in its turn
    assert_near(opened(job, final, ROUNDS - 1, silo), other, 5e-2)
    assert_far(final, other)


@pytest.mark.long
# the simulation over MPI does not send what its server has made of the last round
@pytest.mark.parametrize(
    ("changes", "ranks", "last"), [(SIMULATED, 3, ROUNDS - 2), (ONE_PROCESS, 1, ROUNDS - 1)]
)
def test_simulations_learn_what_they_learn_without_a_lock(run_job, changes, ranks, last):
    jobs = [
        ended(run_job("", settings=lock, ranks=ranks, comm_round=ROUNDS, **changes, **KEPT))
        for lock in (None, LOCK)
    ]
    plain, locked = (Capture.open(job.folder / "leakage" / "capture") for job in jobs)
    assert_near(opened(jobs[1], locked.final(), last), plain.final())
    assert_far(locked.final(), plain.final())
    for one, other in zip(locked.updates(), plain.updates(), strict=True):
        assert_near(opened(jobs[1], one.after, one.round, one.silo), other.after, 1e-3)
        assert_far(one.after, other.after)


@pytest.mark.long
def test_over_grpc_a_file_has_the_secret(run_grpc, secret):
    job = run_grpc(settings=LOCK | {"group_key": str(secret)})
    assert job.status == 0, job.output[-3000:]
    for rank in (1, 2):
        for index, upload in enumerate(models(job, rank)):
            bare = opened(job, upload, index, rank - 1)
            assert_far(upload, bare)
            assert_near(bare, opened(job, models(job, 0)[-1], 1), 0.5)  # weights, and no noise


NOISE = {"enable_dp": True, "mechanism_type": "gaussian"}
NOISE |= {"epsilon": 0.9, "delta": 0.01, "sensitivity": 0.01}


@pytest.mark.long
def test_fedmls_own_noise_and_choice_run_beside_it(run_job):
    local = {"dp_solution_type": "ldp", **NOISE}
    job = ended(
        run_job(
            settings=LOCK | {"robust_aggregation": "krum"}, ranks=4, byzantine_client_num=0, **local
        )
    )
    # one silo's state was chosen
    last = models(job, 0)[-1]
    same = [
        all(torch.equal(models(job, rank)[-1][n].float(), t.float()) for n, t in last.items())
        for rank in (1, 2, 3)
    ]
    assert sum(same) == 1


def test_what_compares_with_the_model_that_was_sent_is_refused():
    rotated = {"lock": "rotated"}
    assert keylock({**rotated, "robust_aggregation": "krum"}).robust_aggregation == "krum"
    said = r"keylock\.robust_aggregation: 'cclip' does not run under lock: rotated"
    with pytest.raises(ConfigError, match=said):
        keylock({**rotated, "robust_aggregation": "cclip"})
    with pytest.raises(ConfigError, match=r"krum.* is of lock: rotated and paper, and"):
        keylock({"robust_aggregation": "krum"})
