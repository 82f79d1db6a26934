"""The server's session: what it does to constants, whom it takes a message from, what it shows."""

from types import SimpleNamespace

import pytest
import torch
from job_arguments import PAPER, arguments, made

from fedml_keylock.errors import HostError, UpdateRefused
from fedml_keylock.host.gate import JOB_NONCE, MARK, EntryNames
from fedml_keylock.host.observer import Observer
from fedml_keylock.host.public_state import pinned
from fedml_keylock.host.server_session import ServerSession
from fedml_keylock.host.session_of import session_of
from fedml_keylock.locks import is_locked

NAMES = EntryNames("model_params", "num_samples", "client_idx")


def server(tmp_path, **changes):
    locked = {**PAPER, "vault": tmp_path}
    return session_of(arguments(**{"role": "server", "rank": 0, "keylock": locked, **changes}))


def send(session, state, rank=1, **more):
    entries = {"model_params": state, **more}
    session.emit(entries, NAMES, rank)
    return entries


def upload(session, rank, state, **more):
    """An update as a silo's gate lets it out."""
    entries = {"model_params": state, "num_samples": 5, MARK: session.agreement.mark, **more}
    session.admit(entries, NAMES, rank)


# --- constants


def test_constants_are_given_back_and_nothing_else_is_touched(tmp_path):
    keylock = {**PAPER, "vault": tmp_path, "robust_aggregation": "krum"}
    session, model = server(tmp_path, keylock=keylock), made()
    state = {n: torch.rand(t.shape, dtype=torch.float64) for n, t in model.state_dict().items()}
    before = {n: t.clone() for n, t in state.items()}
    with pytest.raises(HostError, match="a message was sent before the job's model was locked"):
        send(session, state)
    assert all(torch.equal(state[n], before[n]) for n in before)
    session.adopt(model)
    send(session, state)
    assert session.agreement is not None
    constants = session.agreement.constants
    assert set(constants) == {n for n in state if n.startswith("1.")}
    for name, tensor in state.items():
        assert tensor.dtype == torch.float64
        wanted = torch.full_like(tensor, constants[name]) if name in constants else before[name]
        assert torch.equal(tensor, wanted)
    assert send(session, None) == {"model_params": None}
    assert pinned({0: "a model for each silo"}, session.agreement) == {}


def test_a_first_model_is_sent_with_the_constants_of_locked_layers(tmp_path):
    """Of a model that was trained before."""
    session, model = server(tmp_path), made()
    with torch.no_grad():
        model[1].weight.fill_(0.3)
        model[1].running_mean.fill_(2.0)
    own = {n: t.clone() for n, t in model.state_dict().items()}
    session.adopt(model)
    message = send(session, model.state_dict())
    assert session.agreement is not None
    constants = session.agreement.constants
    for name, tensor in message["model_params"].items():
        wanted = torch.full_like(tensor, constants[name]) if name in constants else own[name]
        assert torch.equal(tensor, wanted), name
    assert all(torch.equal(t, own[n]) for n, t in model.state_dict().items())  # its own stays


def test_every_model_of_a_job_goes_with_one_nonce(tmp_path):
    sessions = [server(tmp_path), server(tmp_path)]
    nonces = []
    for session in sessions:
        session.adopt(made())
        sent = [send(session, dict(made().state_dict()), rank) for rank in (1, 2)]
        nonces.append({entries[JOB_NONCE] for entries in sent})
    assert [len(found) for found in nonces] == [1, 1]
    assert nonces[0] != nonces[1]


# --- whose message it is


def test_a_message_is_of_the_silo_that_the_server_gave_the_rank(tmp_path):
    session = server(tmp_path, client_num_in_total=9)
    session.adopt(made())
    wrong = {"w": torch.ones(1)}
    with pytest.raises(UpdateRefused, match=r"^rank 2, round 0: w is not a public name"):
        upload(session, 2, wrong)
    send(session, dict(made().state_dict()), 2, client_idx=7)
    with pytest.raises(UpdateRefused, match=r"^rank 2 \(silo 7\), round 0: w is not"):
        upload(session, 2, wrong)
    session.emit({"client_idx": "3"}, NAMES, 2)  # as the word at a job's end
    with pytest.raises(UpdateRefused, match=r"^rank 2 \(silo 3\)"):
        upload(session, 2, wrong)


def test_each_rank_has_its_own_silo_where_there_are_as_many(tmp_path):
    session = server(tmp_path)
    session.adopt(made())
    with pytest.raises(UpdateRefused, match=r"^rank 2 \(silo 1\), round 0: its messages are not"):
        session.admit({"type": 5}, NAMES, 2)


def test_no_message_is_taken_before_the_model_is_known(tmp_path):
    with pytest.raises(HostError, match="a message was sent before the job's model was locked"):
        server(tmp_path).admit({"type": 5}, NAMES, 2)


# --- what it shows


class Seen(Observer):
    """Keeps what it is shown."""

    def __init__(self):
        super().__init__(arguments())
        self.shown = []

    def sent(self, state, silo):
        self.shown.append(state)

    def show(self, hook, state, samples, silo, round_index):
        self.shown.append((hook, samples, silo, round_index))


def test_what_passes_the_gate_is_shown_and_a_model_once(tmp_path):
    session = server(tmp_path)
    session.adopt(made())
    session.observer = seen = Seen()
    first, second = dict(made().state_dict()), dict(made().state_dict())
    for state in (first, second):
        for rank in (1, 2):
            send(session, state, rank)
    assert len(seen.shown) == 2
    assert seen.shown[0] is first
    assert seen.shown[1] is second
    upload(session, 1, dict(made().state_dict()), num_samples=torch.tensor(7))
    session.admit({MARK: session.agreement.mark}, NAMES, 2)
    assert seen.shown[2:] == [("after_upload", 7.0, 0, 0)]
    with pytest.raises(UpdateRefused):
        upload(session, 2, dict(made().state_dict()), num_samples=None)
    assert len(seen.shown) == 3


def test_without_a_defense_all_is_shown_as_it_is():
    observer = Seen()
    session = ServerSession(arguments(role="server", rank=0), None, None, observer)
    state = {"w": torch.ones(2)}
    assert send(session, state) == {"model_params": state}
    session.admit({"model_params": state, "num_samples": 3}, NAMES, 1)
    assert observer.shown == [state, ("after_upload", 3.0, 0, 0)]


@pytest.mark.parametrize(
    ("attacker", "transforms", "reads"),
    [(None, False, False), ("one", False, True), ("one", True, False)],
)
def test_updates_must_be_whole_where_an_attack_reads_them(attacker, transforms, reads):
    observer = Observer(arguments(), attacker)
    defense = SimpleNamespace(transforms_updates=transforms)
    session = ServerSession(arguments(role="server", rank=0), "keylock", defense, observer)
    assert session.gate.reads_states is reads


def test_the_model_of_a_server_is_not_locked(tmp_path):
    session, model = server(tmp_path), made()
    before = [type(module) for module in model.modules()]
    session.adopt(model)
    assert [type(module) for module in model.modules()] == before
    assert not is_locked(model)
