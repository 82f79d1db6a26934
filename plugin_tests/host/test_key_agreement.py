"""What silos agree on before a job's first message, and what cannot be had beside it."""

from __future__ import annotations

import logging
from collections import defaultdict
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pytest

from fedml_keylock.builtin import keylock
from fedml_keylock.errors import ConfigError, HostError
from fedml_keylock.host import silo_session
from fedml_keylock.host.observer import Observer
from fedml_keylock.host.server_session import ServerSession
from fedml_keylock.host.silo_session import SiloSession
from fedml_keylock.types import JobSecrets

AGREED = JobSecrets(b"agreed" * 6, 0, {1: bytes([2] * 32), 2: bytes([3] * 32)}, {}, bytes(32))


def job(rank=1, **more):
    role = "server" if rank == 0 else "client"
    each = {"client_num_in_total": 3, "client_num_per_round": 3, "comm_round": 3}
    return SimpleNamespace(role=role, rank=rank, **{"comm": object(), **each, **more})


def agree(defense, args, samples=5):
    """As when FedML's runner begins, on any rank."""
    kind = ServerSession if args.role == "server" else SiloSession
    session = kind(args, "keylock", defense, Observer(args))
    session.agree([*[None] * 4, {args.rank - 1: samples}])
    return session


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "group"
    path.touch(mode=0o600)
    path.write_bytes(b"0123456789abcdef" * 2)
    return str(path)


@pytest.fixture(autouse=True)
def shaken(monkeypatch):
    """The handshakes of silos that have agreed over MPI."""
    made = []
    monkeypatch.setattr(
        silo_session, "agree", lambda _comm, handshake, **_: made.append(handshake) or AGREED
    )
    return made


@pytest.mark.parametrize("settings", [{}, {"lock": "rotated"}, {"lock": ["paper", "sealed"]}])
def test_over_mpi_silos_agree_and_the_defense_has_what_they_agreed_on(
    settings, shaken, caplog, monkeypatch
):
    defense, taken = keylock(settings), []
    monkeypatch.setattr(defense, "share", taken.append)
    with caplog.at_level(logging.INFO):
        agree(defense, job())
    assert taken == [AGREED]
    assert [(one.rank, one.samples, one.file, one.roster) for one in shaken] == [
        (1, 0.0, b"", None)  # silos tell how many samples they have in each round
    ]
    assert caplog.messages[-1] == "silo 0 (rank 1), round 0: the silos have agreed on secrets"


def test_the_server_agrees_on_nothing(shaken):
    agree(keylock({}), job(0))
    assert shaken == []


def test_beside_a_file_there_is_an_agreed_secret_too(shaken, secret):
    agree(keylock({"group_key": secret}), job())
    assert shaken[0].file


def test_without_mpi_it_takes_a_file(secret, shaken):
    for settings in ({}, {"lock": "rotated"}):
        for rank in (0, 1):
            with pytest.raises(ConfigError, match=r"without MPI silos cannot agree.*openssl rand"):
                agree(keylock(settings), job(rank, comm=None))
        session = agree(keylock({**settings, "group_key": secret}), job(comm=None))
        assert session._handshake is not None  # until the server has passed on all hellos
    assert shaken == []


def test_without_mpi_sealing_silos_have_a_rank_each(secret):
    turns = {"comm": None, "client_num_in_total": 4}
    for rank in (0, 1):
        with pytest.raises(ConfigError, match="client_num_in_total: over this backend silos"):
            agree(keylock({"group_key": secret}), job(rank, **turns))
    agree(keylock({"group_key": secret, "lock": "rotated"}), job(**turns))


def test_a_defense_that_shares_nothing_asks_nothing_of_the_other_silos(shaken, caplog):
    agree(keylock({"lock": "paper"}), job())
    agree(keylock({"lock": "paper"}), job(comm=None))
    assert shaken == []
    assert caplog.messages == []


@pytest.mark.parametrize("dataset", [None, {}, {0: None}, []])
def test_samples_that_are_not_known_are_none(dataset, shaken):
    session = SiloSession(job(), "keylock", keylock({}), Observer(job()))
    session.agree([*[None] * 4, dataset])
    assert shaken[0].samples == 0.0


class Lazy:
    """FedML only ever looks a number of samples up."""

    def __getitem__(self, silo):
        return (133.25, 133)[silo]


@pytest.mark.parametrize(
    "numbers",
    [[133.25], {0: np.float64(133.25)}, defaultdict(lambda: 133.25), Lazy(), (Decimal("133.25"),)],
)
def test_samples_are_read_as_fedml_reads_them(numbers, secret):
    defense = keylock({"group_key": secret})
    session = SiloSession(job(comm=None), "keylock", defense, Observer(job()))
    session.agree([*[None] * 4, numbers])
    assert session._handshake.samples == 133.25
    session.check_samples(133.25)
    with pytest.raises(HostError, match=r"dataset\[4\]\[0\], has changed since the job began"):
        session.check_samples(133)


@pytest.mark.parametrize("number", [0, -1, float("nan"), "133", None])
def test_a_silo_that_weighs_nothing_is_refused_before_it_trains(number, secret):
    """Guards `SiloSession.check_samples`, where silos agree and where FedML has looked it up."""
    defense = keylock({"group_key": secret})
    session = SiloSession(job(comm=None), "keylock", defense, Observer(job()))
    line = (
        r"^silo 0 \(rank 1\), round 0: its number of samples, dataset\[4\]\[0\], is a .*; leave a"
    )
    with pytest.raises(HostError, match=line):
        session.agree([*[None] * 4, [number]])
    with pytest.raises(HostError, match=line):
        session.check_samples(number)
    SiloSession(job(), None, None, Observer(job())).check_samples(number)  # plain FedML's affair


CLIPPED = {"enable_dp": True, "dp_solution_type": "cdp", "max_grad_norm": 1.0}
ATTACKED = {"enable_attack": True, "attack_type": "byzantine"}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("beside", "refusal"),
    [
        (CLIPPED, "dp_solution_type: cdp clips and adds noise on the server"),
        (ATTACKED, "attack_type: byzantine changes"),
        (ATTACKED | {"attack_type": "model_replacement"}, "changes single updates"),
        (CLIPPED | {"dp_solution_type": "ldp"}, None),
        (CLIPPED | {"enable_dp": False}, None),
        (ATTACKED | {"attack_type": "label_flipping"}, None),
        (ATTACKED | {"attack_type": "gradient_inversion"}, None),
    ],
)
def test_what_reads_or_changes_single_updates_is_refused_where_they_are_sealed(
    beside, refusal, rank
):
    args = job(rank, **beside)
    agree(keylock({"lock": "rotated"}), args)
    agree(keylock({"lock": "paper"}), args)
    if refusal is None:
        agree(keylock({}), args)
        return
    with pytest.raises(ConfigError, match=f"{refusal}.*lock: sealed keeps"):
        agree(keylock({}), args)


@pytest.mark.parametrize(
    ("kind", "backend", "refused"),
    [
        ("simulation", "MPI", {"save_model": "use checkpoint, which fedml-keylock export opens"}),
        (
            "simulation",
            "sp",
            dict.fromkeys(("save_model", "checkpoint"), "is not sealed")
            | {"keep_history": "leave it out"},
        ),
        ("cross_silo", "MPI", {}),
    ],
)
def test_what_nothing_would_write_is_refused(kind, backend, refused, tmp_path):
    asked = {"save_model": str(tmp_path), "checkpoint": str(tmp_path / "m.safetensors")}
    asked |= {"keep_history": True}
    for name, value in asked.items():
        args = job(training_type=kind, backend=backend, keylock={name: value}, **ENABLED)
        if name not in refused:
            agree(keylock({name: value}), args)
            continue
        with pytest.raises(ConfigError, match=f"^keylock.{name}: .*{refused[name]}"):
            agree(keylock({name: value}), args)


def test_one_process_without_such_settings_is_not_refused():
    agree(keylock({}), job(training_type="simulation", backend="sp", keylock={}, **ENABLED))


ENABLED = {"enable_defense": True, "defense_type": "keylock"}


def test_fedml_has_these_attacks():
    """By the names that are compared with."""
    from fedml.core.security import constants

    assert constants.ATTACK_METHOD_BYZANTINE_ATTACK == "byzantine"
    assert constants.BACKDOOR_ATTACK_MODEL_REPLACEMENT == "model_replacement"


@pytest.mark.parametrize(("colluders", "fits"), [(None, True), (1, True), (2, False)])
def test_as_many_silos_take_part_as_declared_colluders_leave_two_of(colluders, fits):
    settings = {} if colluders is None else {"colluders": colluders}
    if fits:
        agree(keylock(settings), job())
        return
    with pytest.raises(ConfigError, match="of 3 silos at most 1 may collude"):
        agree(keylock(settings), job())
