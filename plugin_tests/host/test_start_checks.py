"""What is checked when a job begins, in the seams into the real FedML."""

import io
import pickle
from types import SimpleNamespace

import pytest
from job_arguments import PAPER, SIMULATED, arguments, made

from fedml_keylock.errors import ConfigError, HostError, LockError, UpdateRefused, VaultError
from fedml_keylock.host.gate import check_mark
from fedml_keylock.host.key_agreement import Handshake, agree
from fedml_keylock.host.roster import add_key, read_roster
from fedml_keylock.host.session_of import session_of


@pytest.fixture
def session(tmp_path):
    """A silo's, whose vault is in a folder of its own."""
    return session_of(arguments(keylock={**PAPER, "vault": tmp_path / "vault"}))


def begun(session, monkeypatch, **more):
    """FedML's runner is made for this session's job; what FedML itself was given."""
    from fedml_keylock.host.fedml import cross_silo

    given = []
    monkeypatch.setattr(cross_silo, "begin", lambda args: session if args is session.args else None)
    construct = cross_silo._runner_constructor(lambda *args: given.append(args))
    construct(None, session.args, "cpu", [None] * 8, made(), **more)
    return given


def test_a_silo_greets_with_a_message_that_fedml_s_silo_knows_and_has_no_use_for(
    session, monkeypatch
):
    """A rank without the plugin reads hellos as FedML's messages."""
    from fedml.cross_silo.client.fedml_client_master_manager import ClientMasterManager

    assert len(begun(session, monkeypatch)) == 1
    message = pickle.load(io.BytesIO(session.greeting + b"a hello"))
    said = []
    silo = SimpleNamespace(
        has_sent_online_msg=True,  # its own connection is up
        message_handler_dict={},
        send_client_status=said.append,
    )
    for name in ("connection_ready", "check_status", "init", "receive_model_from_server"):
        handler = getattr(ClientMasterManager, f"handle_message_{name}")
        setattr(silo, f"handle_message_{name}", handler.__get__(silo))
    silo.handle_message_finish = said.append
    silo.register_message_receive_handler = silo.message_handler_dict.__setitem__
    ClientMasterManager.register_message_receive_handlers(silo)
    silo.message_handler_dict[message.get_type()](message)
    assert not said


def test_a_flow_of_algorithms_is_refused_before_fedml_begins(session, monkeypatch):
    with pytest.raises(HostError, match="algorithm_flow is not supported"):
        begun(session, monkeypatch, algorithm_flow=object())


def test_a_model_that_is_no_module_is_refused(session):
    with pytest.raises(LockError, match="model is a OrderedDict, not a torch"):
        session.adopt(made().state_dict())
    assert session.model is None


def test_a_fedml_that_pickles_elsewhere_is_refused():
    from fedml_keylock.host.fedml.receiving import with_pickle

    with pytest.raises(HostError, match="pickles gRPC's messages elsewhere"):
        with_pickle(lambda: None, loads=pickle.loads)


def test_a_vault_that_cannot_be_written_ends_the_round_with_the_silo_s_name(session, monkeypatch):
    model = made()
    session.adopt(model)

    def lost(*_, round_index):
        raise VaultError(f"round {round_index}: the disk is full")

    monkeypatch.setattr(session.defense, "begin_round", lost)
    with pytest.raises(VaultError, match=r"^silo 1 \(rank 2\), round 0: the disk is full$"):
        session.train(SimpleNamespace(model=model), None, lambda _: None)


def test_an_array_for_a_mark_is_refused(session):
    import numpy as np

    session.adopt(made())
    with pytest.raises(UpdateRefused, match="its model differ"):
        check_mark(np.array(["a", "b"]), session.agreement, who="rank 1")


class SentError(Exception):
    """What the first hello of a silo would be."""


def test_every_hello_begins_with_the_greeting():
    def send(message, dest, tag):
        raise SentError(bytes(message))

    own = Handshake(1)
    comm = SimpleNamespace(Get_rank=lambda: 1, Get_size=lambda: 3, Isend=send)
    with pytest.raises(SentError) as caught:
        agree(comm, own, greeting=b"a greeting")
    assert caught.value.args == (b"a greeting" + own.hello,)


@pytest.mark.parametrize(
    ("field", "value"),
    [("save_model", "a"), ("checkpoint", "a.safetensors"), ("keep_history", True)],
)
def test_what_a_simulation_in_one_process_never_writes_is_refused(field, value, tmp_path):
    settings = {"vault": str(tmp_path), field: value}
    session = session_of(arguments(**SIMULATED, role="server", rank=0, keylock=settings))
    session.adopt(made())
    with pytest.raises(ConfigError, match=f"keylock.{field}: nothing writes it in this kind of"):
        session.agree([None] * 8)


@pytest.mark.parametrize("rank", ["true", "one", "1.0", "[1]"])
def test_a_roster_has_ranks(rank, tmp_path):
    path = tmp_path / "silos.yaml"
    path.write_text(f"? {rank}\n: {'a' * 64}\n")
    with pytest.raises(ConfigError, match=r"must hold lines of RANK: KEY|is not YAML"):
        read_roster(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"defense_type": "keylok"}, "defense_type: 'keylok' is unknown to FedML and to every"),
        (
            {"keylock": {**PAPER, "robust_aggregation": "krum"}},
            "keylock.robust_aggregation: krum needs byzantine_client_num, which is not set",
        ),
    ],
)
def test_a_defense_that_fedml_cannot_make_is_named(changes, said):
    from fedml.core.security.fedml_defender import FedMLDefender

    from fedml_keylock.host.fedml import current_job, security

    init = security._defender_init(FedMLDefender.init)
    try:
        with pytest.raises(ConfigError, match=said):
            init(object.__new__(FedMLDefender), arguments(**changes))
    finally:
        current_job.forget()


def test_an_attack_that_nobody_knows_is_named():
    from fedml.core.security.fedml_attacker import FedMLAttacker

    from fedml_keylock.host.fedml import security

    init = security._attacker_init(FedMLAttacker.init)
    args = SimpleNamespace(enable_attack=True, attack_type="gradient_inversoin")
    with pytest.raises(ConfigError, match="'gradient_inversoin' is unknown to FedML"):
        init(object.__new__(FedMLAttacker), args)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"enable_attack": True, "attack_type": "byzantine"}, "attack_type: byzantine changes"),
        ({"enable_dp": True, "dp_solution_type": "cdp"}, "dp_solution_type: cdp clips and adds"),
    ],
)
def test_a_sealed_job_whose_server_would_read_single_updates_does_not_begin(changes, said):
    for rank in (0, 1):
        role = "client" if rank else "server"
        session = session_of(arguments(keylock={}, rank=rank, role=role, comm=object(), **changes))
        with pytest.raises(ConfigError, match=f"^{said}"):
            session.agree([None] * 8)


def test_a_roster_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none/silos\.yaml: No such file"):
        add_key(tmp_path / "none" / "silos.yaml", 1, "0" * 64)
