"""Audits of lock: sealed: what is sent are words, and who has a round's record opens them."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from test_audit import FEW, attack, digits, invoke, net  # noqa: F401  # digits is a fixture
from wire_subjects import distance, subject_of

from fedml_keylock.builtin import keylock
from fedml_keylock.errors import ConfigError, VaultError
from fedml_keylock.evaluation.audit import (
    Protection,
    accuracy_by_round,
    audit,
    from_capture,
    load_truth,
    save_truth,
)
from fedml_keylock.evaluation.audit.controls import public_norm, recovered, undefended
from fedml_keylock.evaluation.audit.sums import sums_of
from fedml_keylock.evaluation.audit.training import train_update
from fedml_keylock.evaluation.capture import Capture
from fedml_keylock.inversion import PublicData, learned
from fedml_keylock.locks.sealed.record import Record
from fedml_keylock.silos import own_locks, silo_secrets
from fedml_keylock.types import ClientUpdate, JobSecrets

TRAILER = "keylock.sealed"


def test_who_has_the_record_opens_updates_and_who_colludes_no_masks(digits):  # noqa: F811
    subject = subject_of(digits)
    assert {t.dtype for t in subject.updates[0].after.values()} == {torch.int32}
    assert TRAILER in subject.updates[0].after
    plain = undefended(subject)
    for own, as_oracle, as_colluding in zip(
        plain, recovered(subject), recovered(subject, colluding=True), strict=True
    ):
        assert distance(as_oracle.after, own.after) < 1e-6
        assert distance(as_oracle.before, own.before) == 0
        assert distance(as_colluding.after, own.after) > 0.1
    assert public_norm(subject, plain) is None


def test_who_has_no_key_reads_numbers_that_the_model_can_hold(digits):  # noqa: F811
    subject = subject_of(digits)
    sent = subject.updates[0]
    read = subject.attacker_model.read(sent)
    assert {n: (t.shape, t.dtype) for n, t in read.after.items()} == {
        n: (t.shape, t.dtype) for n, t in net().state_dict().items()
    }
    assert distance(read.before, sent.before) == 0
    again = subject.attacker_model.read(read)  # what is read is read already
    assert all(torch.equal(again.after[n], t) for n, t in read.after.items())
    flat = torch.cat([t.flatten() for t in read.after.values()])
    assert abs(float(flat.mean())) < 0.05
    assert float(flat.std()) == pytest.approx(3**-0.5, rel=0.05)


@pytest.mark.parametrize("settings", [{}, {"lock": "paper"}])
def test_an_update_that_changed_nothing_is_left_out_of_the_scores(digits, tmp_path, settings):  # noqa: F811
    """As one whose step is below the fixed point's, which only whoever opens it can see."""
    subject = subject_of(digits, **settings)
    still, *others = subject.updates
    after = {n: t.clone() for n, t in still.before.items()}
    if not settings:
        same = replace(still, after=after)
        transform = subject.attacker_model.update_transform
        sealed, private = transform.protect(same, torch.Generator().manual_seed(7))
        secrets = {n: t.clone() for n, t in subject.secrets.items()}
        for name, tensor in private.items():
            secrets[name][0] = tensor
        subject = replace(subject, updates=(sealed, *others), secrets=secrets)
    else:
        subject = replace(subject, updates=(replace(still, after=after), *others))
    report = audit(subject, attack(steps=20), ["adaptive"], output=tmp_path)
    images = {(row.defense, row.knowledge): row.images for row in report.leakage}
    assert images["none", "none"] == 4
    assert images[subject.defense, "oracle"] == 3
    assert images[subject.defense, "adaptive"] == (3 if settings else 4)


def test_there_is_nothing_for_a_decoder_to_learn(digits, tmp_path):  # noqa: F811
    """What it is trained on and what it is shown are uniform alike."""
    transform, draw = keylock({}).attacker_model(net()).update_transform, torch.Generator()
    update = train_update(net(), *(part[:1] for part in digits), learning_rate=0.1)
    before, after = (
        {n: t.expand(64, *t.shape) for n, t in state.items()}
        for state in (update.before, update.after)
    )
    simulated = transform.observable(before, transform.simulate(before, after, draw))
    sent = [transform.read(transform.protect(update, draw)[0]).after for _ in range(64)]
    seen = transform.observable(before, {n: torch.stack([one[n] for one in sent]) for n in after})
    assert seen.shape == simulated.shape
    assert float(seen.std()) == pytest.approx(float(simulated.std()), rel=0.05)
    report = audit(subject_of(digits), {"learned": learned(steps=20)}, ["simulating"],
                   output=tmp_path)  # fmt: skip
    rows = {(row.defense, row.knowledge): row for row in report.leakage}
    locked = rows["keylock:sealed", "simulating"].metrics["ssim_aligned"]["mean"]
    assert locked < rows["none", "simulating"].metrics["ssim_aligned"]["mean"]


@pytest.fixture
def job(digits, tmp_path):  # noqa: F811
    """A capture, truth and vaults of two rounds of three silos, as a job leaves them."""
    model, names = net(), range(3)
    settings = {"keep_history": True, "vault": tmp_path / "vault"}
    defenses = [keylock(settings) for _ in names]
    agreement = defenses[0].describe(model)
    pairs = {(0, 1): bytes([1] * 32), (0, 2): bytes([2] * 32), (1, 2): bytes([3] * 32)}
    silos, state = [], model.state_dict()
    for silo, defense in enumerate(defenses):
        own = net()
        defense.protect(own, silo=silo, agreement=agreement)
        shared = {b if a == silo else a: s for (a, b), s in pairs.items() if silo in (a, b)}
        defense.share(JobSecrets(b"s" * 32, silo, shared, dict.fromkeys(names, 1)))
        silos.append(own)
    meta = {
        "learning_rate": 0.1, "client_optimizer": "sgd", "batch_size": 1, "rounds": 2,
        "defense": "keylock", "settings": dict(agreement.settings),
    }  # fmt: skip
    capture, truth, models = Capture.create(tmp_path / "capture", meta), {}, []
    for index in range(2):
        sent = []
        for silo, (defense, own) in enumerate(zip(defenses, silos, strict=True)):
            own.load_state_dict(defense.open(own, state, round_index=index - 1))
            if not silo:
                models.append({n: t.clone() for n, t in own.state_dict().items()})
            row = 2 * silo + index
            images, labels = (part[row : row + 1] for part in digits)
            truth[index, silo] = (images, labels)
            loss = torch.nn.functional.cross_entropy(own(images), labels)
            own.zero_grad()
            loss.backward()
            torch.optim.SGD(own.parameters(), 0.1).step()
            sent.append(dict(defense.seal(own, own.state_dict(), samples=1)))
            capture.add(ClientUpdate(dict(state), sent[-1], 0.1, 1, silo, index))
        state = defenses[0].add_up(sent)
    capture.finish(state)
    models.append(defenses[0].open(silos[0], state, round_index=1))
    save_truth(tmp_path / "truth.safetensors", truth)
    return capture, sent, models, defenses[0], tmp_path


def test_a_capture_keeps_the_words(job):
    capture, sent, _, _, _ = job
    kept = Capture.open(capture.folder)
    assert [u.round for u in kept.updates()] == [0, 0, 0, 1, 1, 1]
    for update, words in zip(kept.updates(1), sent, strict=True):
        assert update.after.keys() == words.keys()
        for name, tensor in words.items():
            assert update.after[name].dtype == torch.int32
            assert torch.equal(update.after[name], tensor)
        assert TRAILER in update.before
    assert TRAILER in kept.final()


def test_a_capture_is_opened_by_the_silos_vaults(job):
    folder = job[-1]
    steps = {"steps": 150, **FEW}
    options = [f"inverting_gradients.{name}={value}" for name, value in steps.items()]
    result = invoke(
        *(folder / "capture", "--truth", folder / "truth.safetensors"),
        *("--vault", folder / "vault", "--model", "test_audit:LeNet", "--workers", 1),
        *(word for option in options for word in ("--set", option)),
        *("--knowledge", "adaptive,insider"),
        output=folder / "out",
    )
    assert result.exit_code == 0, result.output
    assert "sealed lock: withstood the attacks tried" in result.output
    report = json.loads((folder / "out" / "report.json").read_text())
    scores = {
        (row["defense"], row["knowledge"], row["round"]): row["ssim_aligned"]["mean"]
        for row in report["leakage"]
    }
    for index in range(2):
        assert scores["keylock:sealed", "oracle", index] > 0.5
        assert scores["none", "none", index] > 0.5
        for level in ("adaptive", "insider"):
            assert scores["keylock:sealed", level, index] < 0.15


def test_the_sum_that_is_attacked_is_what_silos_opened(job):
    capture, _, models, defense, folder = job
    subject = from_capture(
        capture,
        load_truth(folder / "truth.safetensors"),
        net(),
        protection=Protection(defense.title, defense.attacker_model(net())),
        secrets_of=partial(silo_secrets, net(), own_locks(net(), defense, folder / "vault")),
    )
    made = sums_of(subject, undefended(subject), 3)
    for variant in ("none", "keylock:sealed"):
        for one, before, after in zip(made.updates[variant], models[:2], models[1:], strict=True):
            assert distance(one.before, before) < 1e-6
            assert distance(one.after, after) < 1e-6
    assert distance(models[1], models[2]) > 1e-3


def test_without_the_vaults_there_is_no_verdict(job):
    folder = job[-1]
    options = [f"inverting_gradients.{n}={v}" for n, v in {"steps": 20, **FEW}.items()]
    result = invoke(
        *(folder / "capture", "--truth", folder / "truth.safetensors"),
        *("--model", "test_audit:LeNet", "--workers", 1),
        *(word for option in options for word in ("--set", option)),
        output=folder / "out",
    )
    assert result.exit_code == 0, result.output
    assert "without --vault round 0 alone is audited" in result.output
    assert "sealed lock: no verdict" in result.output
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["job"]["rounds"] == [0]
    # the undefended twins were trained on the first model, and not on noise
    assert {row["round"] for row in report["leakage"]} == {0}


def test_without_the_vaults_later_rounds_are_refused_by_what_they_need(job):
    folder = job[-1]
    truth = load_truth(folder / "truth.safetensors")
    save_truth(folder / "later.safetensors", {k: v for k, v in truth.items() if k[0]})
    result = invoke(
        *(folder / "capture", "--truth", folder / "later.safetensors"),
        *("--model", "test_audit:LeNet", "--workers", 1),
        output=folder / "out",
    )
    assert result.exit_code == 1
    assert "only round 0 begins with an open model" in result.output
    assert "--vault" in result.output


def test_silos_have_the_model_of_every_round_and_the_server_has_none(job, digits):  # noqa: F811
    capture, _, models, defense, folder = job
    own_lock = own_locks(net(), defense, folder / "vault")
    states = [capture.sent(0), capture.sent(1), capture.final()]
    for place, (state, wanted) in enumerate(zip(states, models, strict=True)):
        for silo in range(3):
            found = own_lock(state, silo, place if place < 2 else None)
            assert distance(found.state_dict(), wanted) == 0
    final, rounds = accuracy_by_round(
        capture, net(), PublicData(*digits), own_lock, attacker_model=defense.attacker_model(net())
    )
    assert {role: [at for at, _ in points] for role, points in rounds.items()} == {
        "server": [0, 1, 2], "own_lock": [0, 1, 2]
    }  # fmt: skip
    assert rounds["server"][0] == rounds["own_lock"][0]  # the first model is open
    assert set(final) == {"server", "own_lock"}


def test_the_records_of_all_silos_go_together(job):
    """The last silo's message has a pad less than the others'."""
    capture, _, _, defense, folder = job
    updates = capture.updates()
    made = silo_secrets(net(), own_locks(net(), defense, folder / "vault"), updates)
    records = [Record.from_tensors({n: t[row] for n, t in made.items()}) for row in range(6)]
    assert [(r.round, r.place, len(r.covers)) for r in records] == [
        (index, silo, 3 if silo == 2 else 4) for index in range(2) for silo in range(3)
    ]


def test_a_vault_of_no_such_round_or_job_is_refused_in_one_line(job, tmp_path):
    capture, _, _, defense, folder = job
    own_lock = own_locks(net(), defense, folder / "vault")
    with pytest.raises(ConfigError, match="keep_history: true"):
        own_lock(capture.sent(1), 0, 7)
    odd = {n: t + 1 for n, t in capture.final().items()}
    with pytest.raises(ConfigError, match="not of this vault's job"):
        own_lock(odd, 0, None)
    with pytest.raises(VaultError):
        own_locks(net(), defense, tmp_path / "none")(capture.sent(0), 0, 0)
