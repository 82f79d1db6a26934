"""What a server that attacks may be asked for, what it sends to whom, and what it goes on from."""

from __future__ import annotations

import pytest
import torch
from job_arguments import arguments
from torch import nn

from fedml_keylock.errors import ConfigError
from fedml_keylock.evaluation.capture import Capture
from fedml_keylock.evaluation.section import InversionSettings
from fedml_keylock.host.gate import EntryNames
from fedml_keylock.host.session_of import session_of

NAMES = EntryNames("model_params", "num_samples", "client_idx")
IMAGES = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(64) % 3
SEALED, ROTATED = {"lock": "sealed"}, {"lock": "rotated"}


def mlp():
    torch.manual_seed(0)
    layers = (nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3))
    return nn.Sequential(nn.Flatten(), *layers)


def server(tmp_path, active="imprint", keylock=None, model=None, **section):
    """A server's session that has seen its data and its model."""
    named = {} if active is None else {"active": active}
    session = session_of(
        arguments(
            role="server",
            rank=0,
            enable_defense=keylock is not None,
            keylock=keylock or {},
            enable_attack=True,
            attack_type="gradient_inversion",
            gradient_inversion={"output": str(tmp_path), **named, **section},
            learning_rate=0.1,
            batch_size=4,
        )
    )
    session.see_data([None, None, None, [(IMAGES, LABELS)], None, None, None, 3])
    session.see_trainer(None)
    session.adopt(mlp() if model is None else model)
    return session


def sent(session, state, rank):
    entries = {"model_params": state}
    session.emit(entries, NAMES, rank)
    return entries["model_params"]


def answer(session, state, rank):
    after = {name: tensor + 0.01 for name, tensor in state.items()}
    session.admit({"model_params": after, "num_samples": 4}, NAMES, rank)


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"side": "silo"}, "active: only a server sends models"),
        ({"attacks": ["analytic"]}, "active: imprint is not in attacks"),
        ({"rounds": [0, 1]}, "rounds: with active it is one"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(section, words):
    with pytest.raises(ConfigError, match=words):
        InversionSettings.from_mapping({"active": "imprint", **section})


def test_one_word_is_enough():
    settings = InversionSettings.from_mapping({"active": "imprint"})
    assert (list(settings.attacks), settings.rounds) == (["imprint"], (0,))


@pytest.mark.parametrize(
    ("active", "keylock", "round_index", "words"),
    [
        ("imprint", SEALED, 1, r"in round 1: after the first model .* \(keylock:sealed\)"),
        ("imprint", ROTATED, -1, r"in round 2: after the first model .* \(keylock:rotated\)"),
        ("analytic", None, 0, "active: analytic reads what a server receives, and sends nothing"),
    ],
)
def test_what_a_server_cannot_send_is_refused_before_the_job(
    active, keylock, round_index, words, tmp_path
):
    with pytest.raises(ConfigError, match=words):
        server(tmp_path, active, keylock, rounds=[round_index])


def test_a_job_without_messages_is_refused():
    with pytest.raises(ConfigError, match="active: imprint is for training_type: cross_silo"):
        session_of(
            arguments(
                training_type="simulation",
                backend="sp",
                enable_defense=False,
                enable_attack=True,
                attack_type="gradient_inversion",
                gradient_inversion={"active": "imprint"},
            )
        )


def test_the_attacked_round_is_the_only_one_with_another_model(tmp_path, capsys):
    session, own = server(tmp_path, rounds=[1], when="never"), mlp().state_dict()
    average = {name: tensor + 1 for name, tensor in own.items()}
    assert all(same(sent(session, own, rank), own) for rank in (1, 2))
    assert "ATTACKS" not in capsys.readouterr().err
    for rank in (1, 2):
        answer(session, own, rank)
    armed = [sent(session, average, rank) for rank in (1, 2)]
    assert armed[0] is armed[1]
    assert not same(armed[0], average)
    assert "this server ATTACKS the silos: in round 1" in capsys.readouterr().err
    session.args.round_idx = 1
    for rank in (1, 2):
        answer(session, armed[0], rank)
    assert all(same(sent(session, own, rank), average) for rank in (1, 2))
    kept = Capture.open(tmp_path / "capture")
    assert kept.entries() == [(1, 0), (1, 1)]
    assert same(kept.sent(1), armed[0])


def test_each_silo_is_captured_with_the_model_that_it_was_sent(tmp_path):
    session, own = server(tmp_path, "inconsistent_models", when="never"), mlp().state_dict()
    armed = [sent(session, own, rank) for rank in (1, 2)]
    assert not same(*armed)
    for rank, state in enumerate(armed, 1):
        answer(session, state, rank)
    kept = Capture.open(tmp_path / "capture")
    for silo, state in enumerate(armed):
        assert same(kept.load(0, silo).before, state)


def test_a_model_that_cannot_be_armed_is_sent_as_it_is_and_that_is_said(tmp_path, capsys):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    session, own = server(tmp_path, model=model), model.state_dict()
    assert same(sent(session, own, 1), own)
    said = capsys.readouterr().err
    assert "imprint: this server sends its own model: imprint needs" in said
    assert "ATTACKS" not in said


def test_no_server_attacks_that_was_not_told_to(tmp_path, capsys):
    session, own = server(tmp_path, active=None, attacks=["analytic"]), mlp().state_dict()
    assert same(sent(session, own, 1), own)
    assert "ATTACKS" not in capsys.readouterr().err
