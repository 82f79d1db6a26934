"""A silo's audit of itself: what is refused where no attack gives a score, and where one does."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedml_keylock.errors import ConfigError, UpdateRefused
from fedml_keylock.evaluation.audit import audit
from fedml_keylock.evaluation.audit.procedure import NOT_SCORED
from fedml_keylock.evaluation.section import InversionSettings
from fedml_keylock.host.self_audit import SelfAudit
from fedml_keylock.host.server_attacker import Attacker
from fedml_keylock.host.silo_round import SiloRound
from fedml_keylock.locks import KeyLockConfig, make_lock
from fedml_keylock.privacy.accountant import Spending
from fedml_keylock.privacy.ledger import Ledger
from fedml_keylock.types import Schedule

DATA = [(torch.rand(2, 1, 12, 12), torch.tensor([0, 1]))]


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(200, 3))


SEARCH = {"inverting_gradients": {"steps": 3, "restarts": 1, "learning_rate": 0.1}}


def audited(folder, *, rounds=(0,), data=DATA, trainer=None, model=net, defense=None, **settings):
    """A silo's first round, attacked by a search of three steps."""
    settings = {"images": 1, "attacks": SEARCH} | settings
    section = InversionSettings(side="silo", rounds=rounds, output=folder, **settings)
    attacker = Attacker.begin(section, rounds=3, defended=False)
    attacker.see_trainer(SimpleNamespace(rank=1), trainer)
    attacker.see_data(data)
    args = SimpleNamespace(comm_round=3, learning_rate=0.1, epochs=1, batch_size=2)
    told = []
    audit = SelfAudit(attacker, args, model(), defense)
    audit.round_begins(SiloRound(1, 0, "silo 1", told.append), model(), data)
    return told


def test_a_picture_of_one_colour_is_passed_over(tmp_path, monkeypatch):
    """Guards `telling`: anything is like it once aligned, so that it would stop an upload."""
    taken = []
    monkeypatch.setattr(SelfAudit, "_rows", lambda _, subject, folder: taken.append(subject) or [])
    images = torch.rand(2, 1, 12, 12)
    images[0] = 0.5
    audited(tmp_path, data=[(images, torch.tensor([0, 1]))])
    assert taken[0].labels.tolist() == [[1]]


@pytest.fixture
def no_score(monkeypatch):
    """As where every restart diverged."""
    monkeypatch.setattr(SelfAudit, "_rows", lambda *_: [])


def test_scores_are_told(tmp_path):
    (told,) = audited(tmp_path)
    assert set(told) == {"keylock/silo_1/ssim_aligned", "round"}
    assert (tmp_path / "silo-1" / "round-00000" / "report.html").exists()


@pytest.mark.parametrize("data", [DATA, [(torch.rand(2, 3), torch.tensor([0, 1]))]])
def test_a_report_says_what_noise_has_cost(data, tmp_path):
    """Also of an audit that cannot be run, as of what are no pictures."""
    noise = {"clip": 1.0, "multiplier": 2.0, "delta": 1e-5}
    lock = make_lock(KeyLockConfig(colluders=0, noise=noise, vault=tmp_path / "vault"))
    lock.schedule(Schedule(2, ((0, 1),)))
    Ledger(tmp_path / "vault", 1, "silo").add(Spending(2.0))
    assert audited(tmp_path, defense=lock, data=data) == []  # no score leaves the silo
    if data is DATA:
        assert "round 0: ssim_aligned at most" in (tmp_path / "vault" / "silo-1.log").read_text()
    folder = tmp_path / "silo-1" / "round-00000"
    report = json.loads((folder / "report.json").read_text())
    assert bool(report["leakage"]) is (data is DATA)
    said = "epsilon 2.17 at delta 1e-05 (unit: silo) after 1 round"
    assert report["job"]["noise"] == said
    assert said in (folder / "report.html").read_text()


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


def once(outputs, targets):
    """A loss that can be minimised, and has no second derivative: no attack that searches runs."""
    return nn.functional.multi_margin_loss(outputs, targets)


def report_of(folder):
    return json.loads((folder / "silo-1" / "round-00000" / "report.json").read_text())


def uncopied():
    """A net that cannot be copied: it holds a lock of Python's."""
    model = net()
    model[0].guard = threading.Lock()
    return model


SEARCHED = {"inverting_gradients": SEARCH["inverting_gradients"] | {"labels": "optimise"}}
FAILING = {
    "an error of torch in every attack": (
        {"loss": f"{__name__}:once", "attacks": SEARCHED},
        f"inverting_gradients: the loss {__name__}:once has no derivative of its gradient",
    ),
    "an error of torch outside of them": ({"model": uncopied}, "TypeError: cannot pickle"),
    "no update can be made": ({"loss": "MSELoss"}, "MSELoss() takes no targets (2,) for"),
    "labels are not read off": (
        {"loss": "BCEWithLogitsLoss"},
        "inverting_gradients: BCEWithLogitsLoss(): labels are read off the gradient of cross",
    ),
}


@pytest.mark.parametrize(("settings", "reason"), FAILING.values(), ids=FAILING)
def test_an_attack_that_fails_is_a_line_and_ends_no_job(settings, reason, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert audited(tmp_path, **settings) == []
    (line,) = caplog.messages
    assert line.startswith(f"silo 1: its update cannot be audited: {reason}")
    assert "\n" not in line
    ((subject, said),) = report_of(tmp_path)["job"]["not run"].items()
    assert subject == "none"
    assert line.endswith(said)
    with pytest.raises(UpdateRefused, match=r"^silo 1: it cannot be audited: "):
        audited(tmp_path, abort_above={"ssim_aligned": 1}, **settings)


def test_one_attack_of_two_that_fails_is_a_row_and_too_little_where_there_is_a_limit(
    tmp_path, caplog
):
    both = SEARCH | {"analytic": {}}  # for models whose first layer is linear
    with caplog.at_level(logging.WARNING):
        assert len(audited(tmp_path, attacks=both)) == 1
    reason = "the model's first layer, 0 (Conv2d), is not linear: use another attack"
    assert caplog.messages == [f"silo 1: none, analytic: not run: {reason}"]
    assert report_of(tmp_path)["job"]["not run"] == {"none, analytic": reason}
    with pytest.raises(UpdateRefused, match="cannot be audited: none, analytic: the model's first"):
        audited(tmp_path, attacks=both, abort_above={"ssim_aligned": 1})


def test_an_attack_that_diverges_is_too_little_where_there_is_a_limit(tmp_path, monkeypatch):
    def diverged(*given, **settings):
        report = audit(*given, **settings)
        rows = [row for row in report.leakage if row.attack != "dlg"]
        return replace(report, leakage=rows, job={**report.job, NOT_SCORED: {"none, dlg": 1}})

    monkeypatch.setattr("fedml_keylock.host.self_audit.audit", diverged)
    both = SEARCH | {"dlg": {"steps": 3, "restarts": 1}}
    assert len(audited(tmp_path, attacks=both)) == 1
    with pytest.raises(UpdateRefused, match="cannot be audited: none, dlg: it gave no picture"):
        audited(tmp_path, attacks=both, abort_above={"ssim_aligned": 1})


def test_a_limit_is_on_the_worst_picture(tmp_path):
    pictures = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    data = [(pictures, torch.tensor([0, 1, 2, 0]))]
    (told,) = audited(tmp_path, data=data, images=4)
    (row,) = [row for row in report_of(tmp_path)["leakage"] if row["worst"]]
    worst, mean = row["worst"]["ssim_aligned"], row["ssim_aligned"]["mean"]
    assert worst["score"] > mean + 0.01
    assert told["keylock/silo_1/ssim_aligned"] == pytest.approx(worst["score"], abs=1e-4)
    between = (worst["score"] + mean) / 2
    where = f"ssim_aligned {worst['score']:.2f} of picture {worst['picture']}, by inverting_gradi"
    with pytest.raises(UpdateRefused, match=where):
        audited(tmp_path, data=data, images=4, abort_above={"ssim_aligned": between})
    above = worst["score"] + 0.01
    assert audited(tmp_path, data=data, images=4, abort_above={"ssim_aligned": above})


def test_the_trainers_loss_is_attacked_and_the_report_names_it(tmp_path):
    marks = [(DATA[0][0], torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]))]
    attacks = {"dlg": {"steps": 8, "restarts": 2}}
    trainer = SimpleNamespace(criterion=nn.BCEWithLogitsLoss())
    audited(tmp_path, data=marks, attacks=attacks, trainer=trainer)
    report = report_of(tmp_path)
    assert report["job"]["loss"] == "BCEWithLogitsLoss()"
    (row,) = [row for row in report["leakage"] if row["attack"] == "dlg"]
    assert row["label_accuracy"] is None
    assert row["cost"]["mean"] < 1e-3  # it explains the update
    audited(tmp_path, trainer=SimpleNamespace())
    assert report_of(tmp_path)["job"]["loss"] == "CrossEntropyLoss(), assumed"
