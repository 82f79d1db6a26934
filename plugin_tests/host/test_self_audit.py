"""A silo's audit of itself: what is refused where no attack gives a score, and where one does."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedml_keylock.errors import ConfigError, UpdateRefused
from fedml_keylock.evaluation.section import InversionSettings
from fedml_keylock.host.self_audit import SelfAudit
from fedml_keylock.host.server_attacker import Attacker
from fedml_keylock.host.silo_round import SiloRound

DATA = [(torch.rand(2, 1, 12, 12), torch.tensor([0, 1]))]


def net():
    with torch.random.fork_rng():
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(200, 3))


def audited(folder, *, steps=3, rate=0.1, rounds=(0,), data=DATA, **settings):
    """A silo's first round, attacked by a search that takes so many steps."""
    attacks = {"inverting_gradients": {"steps": steps, "restarts": 1, "learning_rate": rate}}
    section = InversionSettings(
        side="silo", images=1, attacks=attacks, rounds=rounds, output=folder, **settings
    )
    attacker = Attacker.begin(section, rounds=3, defended=False)
    attacker.see_data(data, classes=3)
    args = SimpleNamespace(comm_round=3, learning_rate=0.1, epochs=1, batch_size=2)
    told = []
    audit = SelfAudit(attacker, args, net(), None)
    audit.round_begins(SiloRound(1, 0, "silo 1", told.append), net(), data)
    return told


@pytest.fixture
def no_score(monkeypatch):
    """As where every restart diverged."""
    monkeypatch.setattr(SelfAudit, "_rows", lambda *_: [])


def test_scores_are_told(tmp_path):
    (told,) = audited(tmp_path)
    assert set(told) == {"keylock/silo_1/ssim_aligned", "round"}
    assert (tmp_path / "silo-1" / "round-00000" / "report.html").exists()


def test_a_round_that_is_not_asked_for_is_not_audited(tmp_path):
    assert audited(tmp_path, rounds=(1,)) == []


def test_above_the_limit_nothing_is_sent(tmp_path):
    with pytest.raises(UpdateRefused, match=r"silo 1: .*too much: ssim_aligned .* allows -1"):
        audited(tmp_path, abort_above={"ssim_aligned": -1})
    assert len(audited(tmp_path / "other", abort_above={"ssim_aligned": 1, "psnr": 90})) == 2


@pytest.mark.usefixtures("no_score")
def test_without_a_score_nothing_is_sent_where_there_is_a_limit(tmp_path):
    with pytest.raises(UpdateRefused, match="no attack gave a psnr"):
        audited(tmp_path, abort_above={"psnr": 20})


@pytest.mark.usefixtures("no_score")
def test_without_a_score_and_a_limit_it_is_only_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert audited(tmp_path) == []
    assert "silo 1: no attack gave a ssim_aligned" in caplog.text


def test_a_limit_on_a_metric_that_there_is_not_is_refused(tmp_path):
    for name in ("ssm", "lpips"):  # of LPIPS it is little that gives away
        with pytest.raises(
            ConfigError, match=f"abort_above: '{name}' is no metric to be above; th"
        ):
            audited(tmp_path, abort_above={name: 0.5})


def test_what_a_silo_trains_on_is_the_same_beside_an_audit(tmp_path):
    """A loader that shuffles draws from the generator that the audit draws from too."""
    pictures = TensorDataset(torch.rand(24, 1, 12, 12), torch.arange(24) % 3)
    loader, drawn = DataLoader(pictures, 4, shuffle=True), []
    for look in (False, True):
        torch.manual_seed(0)
        if look:
            audited(tmp_path, data=loader)
        drawn.append(torch.cat([images for images, _ in loader]))
    assert torch.equal(*drawn)
