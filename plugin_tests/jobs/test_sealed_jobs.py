"""Jobs under lock: sealed, the default: they learn as without it, and send words that hide all."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import test_matrix
import torch
from job_parts import Net, load
from safetensors.torch import load_file
from test_matrix import KEPT, ONE_PROCESS, SIMULATED, ended, models
from test_wire import runs_of, windows

from fedml_keylock.commands.deploy import read_checkpoint
from fedml_keylock.evaluation.capture import Capture
from fedml_keylock.host.link import Link
from fedml_keylock.host.roster import add_key, new_identity
from fedml_keylock.locks.sealed.model_files import open_checkpoint, read_round
from fedml_keylock.locks.sealed.record import Record
from fedml_keylock.locks.sealed.sealing import TRAILER
from fedml_keylock.locks.vault.file import Stored

ROUNDS = 3
SAVED = {"save_model": "final"}
WITHIN = 30
"""Seconds after which a job that must stop has stopped on every rank, on a busy machine too."""


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    path = tmp_path_factory.mktemp("secret") / "group"
    path.touch(mode=0o600)
    path.write_bytes(bytes(np.random.default_rng(0).integers(0, 256, 32, dtype=np.uint8)))
    return path


@pytest.fixture(scope="module")
def plain(run_job):
    """Three silos whose trainer and aggregator override every hook, without a lock."""
    return ended(run_job("super", settings=None, ranks=4, comm_round=ROUNDS))


@pytest.fixture(scope="module")
def sealed(run_job, secret):
    """The same under the lock, whose silos keep what opens their own updates."""
    settings = SAVED | {"keep_history": True, "group_key": str(secret)}
    return ended(run_job("super", settings=settings, ranks=4, comm_round=ROUNDS))


def saved(job):
    """The final models that silos have written, open: each the same, whose one it is."""
    found = [load_file(path) for path in sorted((job.folder / "final").glob("silo-*.safetensors"))]
    assert found
    for other in found[1:]:
        assert all(torch.equal(other[n], t) for n, t in found[0].items())
    return found[0]


def assert_near(one, other, tolerance=1e-5):
    assert one.keys() == other.keys()
    for name, tensor in other.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):  # a count of batches
            continue
        within = {"rtol": 0.0, "atol": tolerance, "check_dtype": False}
        torch.testing.assert_close(one[name], tensor, **within, msg=lambda m, n=name: f"{n}: {m}")


def record(job, silo, index):
    """What a silo has kept of a round."""
    name = f"keylock_vault/silo-{silo}/round-{index:05d}.safetensors"
    return Record.from_tensors(Stored.read(job.folder / name).state(None))


def accuracy(state):
    """Of all samples, what a model has right."""
    model = Net()
    model.load_state_dict(state)
    images, labels = next(iter(load(SimpleNamespace(client_num_in_total=3, rank=0))[3]))
    return float((model.eval()(images).argmax(1) == labels).float().mean())


def assert_stopped(job, words, *, models_of=()):
    """It ended with one line, on every rank, and soon."""
    assert job.status != 0
    assert job.seconds < WITHIN + 30, job.output[-3000:]  # of which 30 are to start it
    # each silo may say it of another one
    said = {re.sub(r"\bsilo \d", "silo", line.split(": ", 2)[2]) for line in job.ours}
    assert len(said) == 1, job.output[-3000:]
    for word in words:
        assert word in job.ours[0], job.output[-3000:]
    assert "Traceback" not in job.output
    for rank in models_of:
        assert not models(job, rank)


# --- what it learns


def test_a_job_learns_what_it_learns_without_a_lock(sealed, plain):
    assert len(list((sealed.folder / "final").iterdir())) == 3
    final, without = saved(sealed), models(plain, 0)[-1]
    assert_near(final, without)
    assert accuracy(final) == accuracy(without)
    for silo in range(3):
        lines = (sealed.folder / "keylock_vault" / f"silo-{silo}.log").read_text().splitlines()
        told = [float(line.rpartition(" ")[2]) for line in lines]
        assert len(told) == ROUNDS
        assert told[-1] == pytest.approx(accuracy(final), abs=1e-4)
    assert "accuracy in the silo" not in sealed.output


def test_each_upload_is_the_silo_s_own_and_each_average_opens(sealed, plain):
    """Control of what is not found on the wire: those who have the keys do find it."""
    averages, without = models(sealed, 0), models(plain, 0)
    for index in range(ROUNDS):
        sums, other = (m[-3 * (ROUNDS - index)] for m in (averages, without))
        for silo in range(3):
            kept = record(sealed, silo, index)
            assert_near(kept.open(sums).state, other)
            upload = models(sealed, silo + 1)[index]
            assert_near(kept.uncover(upload), models(plain, silo + 1)[index], 1e-4)


def test_neither_a_secret_nor_a_weight_crosses_the_wire(sealed, secret):
    crossed = sealed.wire()
    private = {secret.read_bytes()}
    for silo in range(3):
        for index in range(ROUNDS):
            kept = record(sealed, silo, index)
            private |= {kept.pad_key, kept.tag_key, *(key for key, _ in kept.covers)}
    assert len(private) > 3 * ROUNDS
    for one in private:
        assert not any(one[at : at + 8] in crossed for at in range(len(one) - 7))
    seen = windows(crossed)
    first = models(sealed, 0)[0]  # the server's own
    states = [torch.load(path) for path in sorted(sealed.folder.glob("trained-*.pt"))]
    assert len(states) >= 3 * ROUNDS
    found = 0
    for state in (*states, saved(sealed)):
        for name, tensor in state.items():
            if tensor.is_floating_point() and tensor.numel() > 2:
                new = runs_of(tensor)[~np.isin(runs_of(tensor), runs_of(first[name]))]
                assert not np.isin(new, seen).any(), f"{name} was sent"
                found += len(new)
    assert found > 1000
    # the control: what was sent is found
    assert np.isin(runs_of(first["3.weight"]), seen).all()


def test_what_is_sent_is_words_and_little_else(sealed, plain):
    for rank in (1, 2, 3):
        for upload in models(sealed, rank):
            assert {t.dtype for t in upload.values()} == {torch.int32}
            assert upload.keys() == Net().state_dict().keys() | {TRAILER}
        told = [m["num_samples"] for m in sealed.decoded(rank) if "model_params" in m]
        assert told == [1] * ROUNDS
    sent = [sum(m["bytes"] for m in job.messages(1)) for job in (sealed, plain)]
    assert sent[0] < 1.5 * sent[1]  # vectors take two words, and here they are many


def test_words_look_like_chance(sealed):
    words = torch.cat([t.flatten() for t in models(sealed, 2)[1].values()])
    bits = np.unpackbits(words.numpy().view(np.uint8))
    assert abs(bits.mean() - 0.5) < 4 * 0.5 / len(bits) ** 0.5


def test_the_server_says_that_it_does_not_test(sealed):
    assert sealed.output.count("its model is sealed, and is not tested here") == 1
    assert sealed.ours == []


# --- kinds of jobs


def test_silos_keep_nothing_where_nothing_asks_for_it(run_job):
    """With FedML's own trainer and aggregator, two silos, and no setting at all."""
    job = ended(run_job(settings={}))
    assert sorted(path.name for path in (job.folder / "keylock_vault").glob("*.*")) == [
        "silo-0.log",
        "silo-1.log",
    ]
    assert "lock: sealed with two silos: each learns the other's update" in job.output
    assert not (job.folder / "final").exists()


def test_over_grpc_a_file_has_the_secret_and_another_tags_messages(
    run_grpc, run_job, secret, tmp_path_factory
):
    plain = ended(run_job(settings=None))
    path = tmp_path_factory.mktemp("link") / "link"
    path.touch(mode=0o600)
    path.write_bytes(secret.read_bytes()[::-1])
    job = ended(run_grpc(settings=SAVED | {"group_key": str(secret), "link_key": str(path)}))
    assert_near(saved(job), models(plain, 0)[-1])
    for rank in (1, 2):
        assert {t.dtype for upload in models(job, rank) for t in upload.values()} == {torch.int32}
        server, wire = Link(path.read_bytes(), 0), (job.folder / f"wire-{rank}.bin").read_bytes()
        for message in job.messages(rank):
            assert server.check(wire[: message["bytes"]])[1] == rank
            wire = wire[message["bytes"] :]
        assert wire == b""


@pytest.fixture
def identities(tmp_path_factory):
    folder = tmp_path_factory.mktemp("identities")
    for rank in (1, 2):
        add_key(folder / "roster", rank, new_identity(folder / f"own-{rank}"))
    return {"roster": str(folder / "roster"), "identity": str(folder / "own-{rank}")}


@pytest.mark.long
def test_over_grpc_a_roster_says_who_is_who(run_grpc, secret, identities):
    job = ended(run_grpc(settings=SAVED | {"group_key": str(secret)} | identities))
    assert accuracy(saved(job)) > 0


@pytest.mark.long
def test_a_roster_over_mpi_and_another_identity(run_job, identities, tmp_path):
    ended(run_job(settings=identities))
    new_identity(tmp_path / "own-1")
    new_identity(tmp_path / "own-2")
    other = identities | {"identity": str(tmp_path / "own-{rank}")}
    assert_stopped(run_job(settings=other), ["keylock.identity: it is not the key"])


@pytest.mark.long
def test_silos_in_turn_learn_what_they_learn_without_a_lock(run_job):
    turns = {"client_num_in_total": 5, "client_num_per_round": 3, "comm_round": ROUNDS}
    plain = ended(run_job(settings=None, ranks=4, **turns))
    job = ended(run_job(settings=SAVED, ranks=4, **turns))
    # without the plugin FedML takes silo 0 for none, and trains another one in its turn
    found, wanted = saved(job), models(plain, 0)[-1]
    whole = {name for name, tensor in found.items() if not tensor.is_floating_point()}
    # the average of integers is rounded, where FedML leaves a fraction
    assert all(abs(float(found[name]) - float(wanted[name])) <= 0.5 for name in whole)
    parts = found.keys() - whole
    assert_near({n: found[n] for n in parts}, {n: wanted[n] for n in parts}, 5e-2)


@pytest.mark.long
def test_fedmls_mpi_simulation_learns_what_it_learns_without_a_lock(run_job):
    """It does not send what its server has made of the last round: a checkpoint has it.

    Three silos take turns on two ranks.
    """
    turns = {**SIMULATED, **KEPT, "client_num_in_total": 3, "comm_round": ROUNDS}
    jobs = [
        ended(run_job("", settings=lock, **turns))
        for lock in (None, {"checkpoint": "sealed.safetensors"})
    ]
    plain, _ = (Capture.open(job.folder / "leakage" / "capture") for job in jobs)
    path = jobs[1].folder / "sealed.safetensors"
    assert read_round(path) == ROUNDS - 1
    kept = Stored.read(jobs[1].folder / "keylock_vault" / "silo-1.safetensors").state(None)
    opened = open_checkpoint(
        Record.from_tensors(kept), read_checkpoint(path), round_index=None, source=path
    )
    last = max(plain.rounds())
    uploads = [u for u in plain.updates() if u.round == last]
    total = sum(u.samples for u in uploads)
    mean = {n: sum(u.samples / total * u.after[n].double() for u in uploads) for n in opened}
    assert_near(opened, mean)


def test_a_simulation_in_one_process_learns_what_it_learns_without_a_lock(run_job):
    jobs = [
        ended(run_job("", settings=lock, ranks=1, comm_round=ROUNDS, **ONE_PROCESS, **KEPT))
        for lock in (None, {})
    ]
    plain, sealed = (Capture.open(job.folder / "leakage" / "capture") for job in jobs)
    assert_near(sealed.final(), plain.final())


@pytest.mark.long
def test_the_published_lock_runs_under_the_seal(run_job):
    job = ended(run_job(settings={"lock": ["paper", "sealed"], "key_length": 64, **SAVED}))
    for rank in (1, 2):
        assert {t.dtype for upload in models(job, rank) for t in upload.values()} == {torch.int32}
    assert saved(job)


# --- what stops a job


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("custom", ["the server, round 0: ", "super().aggregate(updates) gives, unchanged"]),
        pytest.param(
            "momentum",
            ["the server, round 0: the job's aggregator changed the sum", "super().aggregate"],
            marks=pytest.mark.long,
        ),
        pytest.param(
            "raising",
            ["aggregator failed on sealed updates (ValueError: 3 updates", "super().aggregate"],
            marks=pytest.mark.long,
        ),
    ],
)
def test_an_aggregator_that_computes_by_itself_ends_in_one_line(run_job, case, words):
    job = run_job(case, settings={}, ranks=4)
    assert_stopped(job, words)
    first, *again = models(job, 0)
    assert all(torch.equal(other["0.weight"], first["0.weight"]) for other in again)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("nan", ["round 0: ", "numbers of the silos' updates were NaN or infinite"]),
        pytest.param(
            "part", ["round 0: ", "sends other names, shapes or types"], marks=pytest.mark.long
        ),
        pytest.param("shape", ["round 0: 3.weight: is (2, 4, 3, 3)"], marks=pytest.mark.long),
        pytest.param(
            "silo_without_plugin",
            ["its messages are not locked: the plugin is not active there"],
            marks=pytest.mark.long,
        ),
        pytest.param("silo_without_flag", ["the same YAML"], marks=pytest.mark.long),
    ],
)
def test_what_silos_cannot_seal_ends_in_one_line(run_job, case, words):
    job = run_job(case, settings={})
    assert_stopped(job, words)
    if case == "nan":  # which tensor of which silo is the silo's own affair
        assert "3.weight" not in job.output
        assert "3.weight" in (job.folder / "keylock_vault" / "silo-1.log").read_text()
    else:
        assert not models(job, 2)


@pytest.mark.long
def test_other_samples_than_were_said_over_grpc_are_refused(run_grpc, secret):
    job = run_grpc("more", settings={"group_key": str(secret)})
    assert job.status != 0
    assert re.search(r"it has \d+ samples and said 48 when the job began", job.output), job.output[
        -3000:
    ]


NOISE = test_matrix.NOISE | {"mechanism_type": "gaussian"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("settings", "beside", "words"),
    [
        ({}, NOISE | {"dp_solution_type": "cdp"}, ["dp_solution_type: cdp", "use ldp"]),
        (SAVED, SIMULATED, ["keylock.save_model: nothing writes it", "use checkpoint"]),
    ],
)
def test_what_cannot_be_had_beside_it_is_refused_before_anything_is_sent(
    run_job, settings, beside, words
):
    """Each thing by itself is in host/test_key_agreement.py."""
    job = run_job(settings=settings, **beside)
    assert_stopped(job, words)
    assert job.wire() == b""


@pytest.mark.long
def test_fedmls_local_noise_and_poisoned_labels_run_beside_it(run_job):
    beside = NOISE | {"dp_solution_type": "ldp"} | test_matrix.ATTACKS["label_flipping"]
    noisy = saved(ended(run_job(settings=SAVED, **beside)))
    quiet = models(ended(run_job(settings=None)), 0)[-1]
    # of two silos' noise, of scale 0.03, the average is here
    assert 0.01 < (noisy["9.weight"] - quiet["9.weight"]).std() < 0.2
