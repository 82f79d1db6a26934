"""A silo's session: a rank that serves silo after silo, and what stays in the silo."""

import logging
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from job_arguments import PAPER, arguments, made
from torch import nn

from fedml_keylock.builtin import keylock
from fedml_keylock.disk import claim, release
from fedml_keylock.errors import ConfigError, HostError, LockError, UpdateRefused, VaultError
from fedml_keylock.host.gate import JOB_NONCE, MARK, EntryNames
from fedml_keylock.host.observer import Observer
from fedml_keylock.host.session_of import session_of
from fedml_keylock.host.silo_session import SiloSession
from fedml_keylock.host.silo_training import quietly
from fedml_keylock.locks import Lock, private_state_dict
from fedml_keylock.locks.vault import silo as vaults

# --- silo after silo


@contextmanager
def np_random_kept():
    """FedML seeds numpy's own generator."""
    kept = np.random.get_state()
    yield
    np.random.set_state(kept)


@pytest.fixture
def serving(tmp_path):
    """A rank that serves many silos, its defense, and an optimizer made before the first."""
    torch.manual_seed(0)
    settings = {"key_length": 16, "lock": "paper", "vault": tmp_path}
    session = session_of(arguments(client_num_in_total=4, comm_round=9, keylock=settings))
    model = made()
    session.adopt(model)
    return session, model, torch.optim.SGD(model.parameters(), lr=0.1)


def train(session, model, optimizer, silo, index):
    session.args.round_idx = index
    session.enter(silo)
    start = private_state_dict(model)

    def run(_):
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(
                model(torch.rand(6, 1, 8, 8)), torch.arange(6) % 3
            ).backward()
            optimizer.step()

    session.train(SimpleNamespace(model=model), None, run)
    return start, private_state_dict(model)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_a_lock_follows_its_silo(serving, tmp_path):
    session, model, optimizer = serving
    assert not list(tmp_path.iterdir())  # which silo it serves is not known yet
    held = [id(p) for p in model.parameters()]
    _, first = train(session, model, optimizer, 2, 0)
    kept = (tmp_path / "silo-2.safetensors").read_bytes()
    other, _ = train(session, model, optimizer, 0, 1)
    assert (tmp_path / "silo-2.safetensors").read_bytes() == kept
    for name in first:
        if name.startswith("1.keylock.") and first[name].numel() > 1:
            assert not torch.allclose(other[name], first[name]), name
    # the former silo's statistics are not the next one's start
    assert (other["1.running_mean"] == 0).all()
    assert not (first["1.running_mean"] == 0).all()
    again, end = train(session, model, optimizer, 2, 2)
    assert equal(again, first)
    assert not equal(end, first)
    assert [id(p) for p in model.parameters()] == held


def test_a_silos_lock_is_another_ranks_in_the_next_round(serving, tmp_path):
    session, model, optimizer = serving
    _, end = train(session, model, optimizer, 1, 0)
    settings = session.args.keylock
    other = session_of(arguments(rank=1, client_num_in_total=4, comm_round=9, keylock=settings))
    twin = made()
    other.adopt(twin)
    start, _ = train(other, twin, torch.optim.SGD(twin.parameters(), lr=0.1), 1, 1)
    assert equal(start, end)


def test_a_rank_does_not_train_with_the_last_silos_lock(serving):
    session, model, optimizer = serving
    train(session, model, optimizer, 1, 0)
    with pytest.raises(ConfigError, match="before it had a silo's lock"):
        session.train(SimpleNamespace(model=model), None, lambda _: None)


def test_no_silo_is_entered_after_the_last_round(serving, tmp_path):
    session, model, optimizer = serving
    session.args.comm_round = 1
    train(session, model, optimizer, 1, 0)
    session.enter(3)
    assert not (tmp_path / "silo-3.safetensors").exists()


def test_no_round_is_trained_after_the_last(own):
    session, model = own
    session.args.comm_round = 1
    session.train(SimpleNamespace(model=model), None, lambda _: model.state_dict())
    ran = []
    with pytest.raises(UpdateRefused, match="asks for a round beyond the 1 of the job; nothing"):
        session.train(SimpleNamespace(model=model), None, lambda _: ran.append(1))
    assert not ran


def test_messages_name_the_silo_and_not_the_rank(serving):
    session, model, optimizer = serving
    assert session.who == "rank 2, round 0"
    train(session, model, optimizer, 3, 4)
    assert session.who == "silo 3 (rank 2), round 4"


def test_a_rank_of_one_silo_takes_no_other(tmp_path):
    session = session_of(arguments(keylock={**PAPER, "vault": tmp_path}))
    session.adopt(made())
    session.enter(1)
    with pytest.raises(
        HostError, match=r"silo 1 \(rank 2\), round 0: FedML gave it the data of silo 0"
    ):
        session.enter(0)


@pytest.mark.parametrize("silo", [-1, 4])
def test_a_silo_that_there_is_not_is_not_entered(serving, tmp_path, silo):
    session, *_ = serving
    with pytest.raises(HostError, match=f"silo {silo}; there is none"):
        session.enter(silo)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["cross_silo", "simulation"])
def test_in_a_sealed_job_the_server_does_not_choose_who_takes_part(kind):
    """With one silo on two ranks it would have a sum that is mostly that silo's."""
    from fedml.cross_silo.server.fedml_aggregator import FedMLAggregator
    from fedml.simulation.mpi.fedavg.FedAVGAggregator import FedAVGAggregator

    many = {"client_num_in_total": 7, "client_num_per_round": 3, "comm_round": 5}
    ranks = [arguments(rank=r, keylock={}, worker_num=3, **many) for r in (1, 2, 3)]
    for args in ranks:
        args.training_type, args.worker_num = kind, 3 + (kind == "simulation")
    sessions = [session_of(args) for args in ranks]
    for session in sessions:
        session.adopt(made())
    with np_random_kept():
        for index in range(5):
            if kind == "simulation":
                named = FedAVGAggregator.client_sampling(None, index, 7, 3)
            else:
                named = FedMLAggregator.data_silo_selection(None, max(0, index - 1), 7, 3)
            assert len({*named}) == 3
            for session, silo in zip(sessions, named, strict=True):
                other = int(named[0]) if silo != named[0] else int(named[1])
                with pytest.raises(HostError, match=f"silo {other}, and by FedML's .* {silo}; a"):
                    session.enter(other)
                session.enter(int(silo))
                assert session.silo == silo
                session._trained += 1


def test_another_model_of_a_silo_is_refused(serving, tmp_path):
    session, model, optimizer = serving
    train(session, model, optimizer, 1, 0)
    defense, other = keylock(session.args.keylock), nn.Sequential(made(), nn.Linear(3, 2))
    agreement = replace(defense.describe(other), layers=("0.0",))
    defense.protect(other, silo=None, agreement=agreement)
    with pytest.raises(VaultError, match="its layout is"):
        defense.enter_silo(other, silo=1)


# --- one process at a time, one after another

HOLDER = """
import sys, time
from pathlib import Path
from fedml_keylock.disk import claim, release
path = Path(sys.argv[1])
claim(path, what="it")
print("held", flush=True)
sys.stdin.readline()
time.sleep(float(sys.argv[2]))
release(path)
print("released", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds a lock file; `write` has it release that after 0.5 seconds."""
    path = tmp_path / ".silo-1.lock"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), "0.5"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield path, process
    process.kill()
    process.communicate()


def test_a_claim_is_handed_over_and_waited_for(holder):
    path, process = holder
    with pytest.raises(VaultError, match=f"in use by process {process.pid}"):
        claim(path, what="it")
    with pytest.raises(VaultError, match=f"in use by process {process.pid}"):
        claim(path, what="it", wait=0.2)
    process.stdin.write("\n")
    process.stdin.flush()
    assert claim(path, what="it", wait=30)
    assert process.stdout.readline() == "released\n"
    assert process.poll() is None  # it lives: what it let go is the claim
    release(path)


def test_what_is_released_is_claimed_anew(tmp_path):
    path = tmp_path / "lock"
    release(path)  # nothing to release
    assert claim(path, what="it")
    assert not claim(path, what="it")
    release(path)
    assert claim(path, what="it")
    release(path)


def test_a_rank_waits_for_the_silos_former_rank(serving, tmp_path, holder):
    session, model, optimizer = serving
    path, process = holder
    process.stdin.write("\n")
    process.stdin.flush()
    train(session, model, optimizer, 1, 0)
    assert path == vaults._lock_file(tmp_path, 1)


def test_a_silo_that_is_in_use_is_not_entered(serving, tmp_path, holder, monkeypatch):
    session, model, _ = serving
    monkeypatch.setattr(Lock, "HAND_OVER", 0.1)
    before = private_state_dict(model)
    with pytest.raises(VaultError, match="silo 1 is in use by process"):
        session.enter(1)
    assert equal(private_state_dict(model), before)


# --- what stays in the silo


@pytest.mark.parametrize("log_training", [False, True])
def test_what_is_logged_of_training_stays_in_the_silo(log_training, caplog):
    """FedML's trainers log each batch's loss, from which the server has the label."""
    with caplog.at_level(logging.INFO):
        with quietly(log_training):
            logging.info("Loss: 2.3")
            logging.getLogger("of a trainer").info("Loss: 2.4")
            logging.warning("something is wrong")
        logging.info("after it")
    assert ("Loss" in caplog.text) == log_training
    assert "something is wrong" in caplog.text
    assert "after it" in caplog.text


# --- messages

NAMES = EntryNames("model_params", "num_samples", "client_idx")


@pytest.fixture
def own(tmp_path):
    """A rank of one silo, and its model."""
    session = session_of(arguments(keylock={**PAPER, "vault": tmp_path}, learning_rate=0.1))
    model = made()
    session.adopt(model)
    return session, model


def from_server(state, nonce="41" * 16):
    return {"model_params": dict(state), JOB_NONCE: nonce}


def test_a_silo_tells_its_defense_of_the_job_and_of_each_model(own, monkeypatch):
    session, model = own
    told = []
    monkeypatch.setattr(session.defense, "begin_job", lambda nonce: told.append(nonce))

    def opened(_model, message, *, round_index):
        told.append(round_index)
        return {**message, "4.bias": message["4.bias"] + 1}

    monkeypatch.setattr(session.defense, "open", opened)
    session.admit(from_server(model.state_dict()), NAMES, 0)
    session._trained += 1
    entries = from_server(model.state_dict())
    session.admit(entries, NAMES, 0)
    # FedML loads what the defense has opened
    assert torch.equal(entries["model_params"]["4.bias"], model[4].bias + 1)
    assert told == [b"A" * 16, -1, b"A" * 16, 0]
    assert session.observer.received.keys() == model.state_dict().keys()
    session.admit({"type": 5}, NAMES, 0)  # a word that brings no model
    assert len(told) == 4


def test_a_silo_refuses_a_model_without_a_job_nonce_and_says_who_it_is(own):
    session, model = own
    said = r"^silo 1 \(rank 2\), round 0: the server's model arrived without the job nonce"
    with pytest.raises(UpdateRefused, match=said):
        session.admit(from_server(model.state_dict(), nonce=None), NAMES, 0)


def test_a_silo_that_shares_a_secret_takes_no_model_before_it_has_one(tmp_path):
    session = session_of(arguments(keylock={"vault": tmp_path}))
    model = made()
    session.adopt(model)
    with pytest.raises(HostError, match="before the silos had agreed on a secret: start the job"):
        session.admit(from_server(made().state_dict()), NAMES, 0)


def test_nothing_is_sent_or_loaded_before_the_model_is_locked(tmp_path):
    session = session_of(arguments(keylock={**PAPER, "vault": tmp_path}))
    for word in ({"type": 5}, {"model_params": made().state_dict()}):
        with pytest.raises(HostError, match="a message was sent before the job's model was locked"):
            session.emit(dict(word), NAMES, 0)
    with pytest.raises(HostError, match="a message was sent before the job's model was locked"):
        session.admit(from_server(made().state_dict()), NAMES, 0)
    session.admit({"type": 5}, NAMES, 0)


def test_what_a_silo_sends_is_what_the_defense_seals(own, monkeypatch):
    session, model = own
    asked = []

    def seal(_model, state, *, samples):
        asked.append(samples)
        return {"4.bias": state["4.bias"] + 1}

    monkeypatch.setattr(session.defense, "seal", seal)
    entries = {"model_params": model.state_dict(), "num_samples": 7}
    session.emit(entries, NAMES, 0)
    assert asked == [7.0]
    assert list(entries["model_params"]) == ["4.bias"]
    assert entries[MARK] == session.agreement.mark


def test_why_a_defense_seals_nothing_is_said_with_the_silo(own, monkeypatch):
    session, model = own

    def seal(*_, samples):
        raise UpdateRefused("it would send a second state")

    monkeypatch.setattr(session.defense, "seal", seal)
    with pytest.raises(UpdateRefused, match=r"^silo 1 \(rank 2\), round 0: it would send a second"):
        session.emit({"model_params": model.state_dict()}, NAMES, 0)


def test_a_silo_without_a_defense_sends_and_takes_what_it_is_given():
    session = SiloSession(arguments(), None, None, Observer(arguments()))
    entries = {"model_params": "anything", "note": [1]}
    session.emit(entries, NAMES, 0)
    session.admit(entries, NAMES, 0)
    assert entries == {"model_params": "anything", "note": [1]}


# --- what trains


def test_what_was_trained_in_a_copy_is_not_sent(own, monkeypatch):
    """As the defense tells it: no gradient reached the locked model."""
    session, model = own
    session.args.comm_round = 9
    monkeypatch.setattr(session.defense, "end_round", lambda *_, round_index: False)
    trainer = SimpleNamespace(model=model)
    state = model.state_dict()
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    for same in (state, (state, 5), zeros):
        assert session.train(trainer, None, lambda _, same=same: same) is same
    moved = {**state, "4.bias": state["4.bias"] + 1}
    said = r"^silo 1 \(rank 2\), round 0: .* not trained in the locked model, .*\(4\.bias differs\)"
    for copied in (moved, (moved, 5)):
        with pytest.raises(UpdateRefused, match=said):
            session.train(trainer, None, lambda _, copied=copied: copied)


def test_a_trainer_of_another_model_does_not_train(own):
    session, model = own
    session.train(SimpleNamespace(model=nn.Sequential(model)), None, lambda _: None)  # in a wrapper
    session.train(SimpleNamespace(net=made()), None, lambda _: None)  # or by another name
    ran = []
    with pytest.raises(LockError, match=r"^silo 1 .*trainer's model is not the one that was lock"):
        session.train(SimpleNamespace(model=made()), None, lambda _: ran.append(1))
    assert not ran


# --- integers


@pytest.mark.parametrize("kind", ["client", "server"])
def test_an_average_has_integers_where_the_model_has_them(kind, tmp_path):
    """Guards `Session.with_integers`: of ten silos' 54 of 169 entries of a table were one less."""
    model = made()
    table = torch.arange(169)
    model.register_buffer("index", table.clone())
    changes = {"keylock": {**PAPER, "vault": tmp_path}, "role": kind, "rank": int(kind == "client")}
    session = session_of(arguments(**changes))
    session.adopt(model)
    state = model.state_dict()
    average = {n: sum(t * 0.1 for _ in range(10)) for n, t in state.items()}
    assert int((average["index"].long() < table).sum()) == 54  # as loading would take it
    found = session.with_integers(average)
    assert found["index"].equal(table)
    assert found["index"].dtype == torch.int64
    assert found["0.weight"] is average["0.weight"]
    assert session.with_integers(state) is state
    if kind == "client":
        assert session._open(average)["index"].equal(table)
