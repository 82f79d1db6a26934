"""Audits of lock: rotated: what is sent is rotated, and who has the key opens it."""

from __future__ import annotations

import json

import torch
from test_audit import FEW, attack, digits, invoke, net  # noqa: F401  # digits is a fixture
from torch import nn
from wire_subjects import distance, subject_of

from fedml_keylock.builtin import keylock
from fedml_keylock.evaluation.audit import audit, save_truth
from fedml_keylock.evaluation.audit.controls import public_norm, recovered, undefended
from fedml_keylock.evaluation.audit.training import train_update
from fedml_keylock.evaluation.capture import Capture
from fedml_keylock.inversion import Knowledge, PublicData, learned
from fedml_keylock.locks.rotated.rotation_transform import RotationTransform
from fedml_keylock.types import ClientUpdate, JobSecrets


def assert_same(one: ClientUpdate, other: ClientUpdate, tolerance=1e-6):
    for name, tensor in other.after.items():
        torch.testing.assert_close(one.after[name], tensor, atol=tolerance, rtol=0)
        torch.testing.assert_close(one.before[name], other.before[name], atol=tolerance, rtol=0)


def test_who_has_the_key_opens_updates_and_so_does_who_colludes(digits):  # noqa: F811
    subject = subject_of(digits, lock="rotated")
    plain = undefended(subject)
    for sent, own, as_oracle, as_colluding in zip(
        subject.updates, plain, recovered(subject), recovered(subject, colluding=True), strict=True
    ):
        assert distance(sent.after, own.after) > 0.1
        assert_same(as_oracle, own)
        assert_same(as_colluding, own)
    assert public_norm(subject, plain) is None


def test_what_a_decoder_sees_does_not_depend_on_the_key(digits):  # noqa: F811
    model = net()
    transform = keylock({"lock": "rotated"}).attacker_model(model).update_transform
    update = train_update(model, *(part[:1] for part in digits), learning_rate=0.1)
    seen = []
    for seed in range(3):
        sent, _ = transform.protect(update, torch.Generator().manual_seed(seed))
        assert distance(sent.after, update.after) > 0.1
        states = [{n: t[None] for n, t in state.items()} for state in (sent.before, sent.after)]
        seen.append(transform.observable(*states))
    torch.testing.assert_close(seen[0], seen[1], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(seen[0], seen[2], atol=1e-4, rtol=1e-3)
    assert seen[0].shape == (1, 1)  # one length, of all parameters together


def test_a_decoder_is_trained_on_what_a_turn_leaves(digits, tmp_path):  # noqa: F811
    subject = subject_of(digits, lock="rotated")
    attacks = {"learned": learned(steps=20)}
    report = audit(subject, attacks, ["simulating"], output=tmp_path)
    rows = {(row.defense, row.knowledge): row for row in report.leakage}
    locked = rows["keylock:rotated", "simulating"].metrics["ssim_aligned"]["mean"]
    assert locked < rows["none", "simulating"].metrics["ssim_aligned"]["mean"]


def test_a_capture_is_opened_by_the_silos_vaults(digits, tmp_path):  # noqa: F811
    """Rounds rotated anew, as a job of three silos leaves them."""
    model = net()
    settings = {"lock": "rotated", "keep_history": True, "vault": tmp_path / "vault"}
    defenses = [keylock(settings) for _ in range(3)]
    agreement = defenses[0].describe(model)
    silos, state = [], model.state_dict()
    for silo, defense in enumerate(defenses):
        own = net()
        defense.protect(own, silo=silo, agreement=agreement)
        defense.share(JobSecrets(b"s" * 32, silo))
        silos.append(own)
    meta = {
        "learning_rate": 0.1, "client_optimizer": "sgd", "batch_size": 1, "rounds": 2,
        "defense": "keylock", "settings": dict(agreement.settings),
    }  # fmt: skip
    capture, truth = Capture.create(tmp_path / "capture", meta), {}
    for index in range(2):
        sent = []
        for silo, (defense, own) in enumerate(zip(defenses, silos, strict=True)):
            own.load_state_dict(defense.open(own, state, round_index=index - 1))
            defense.begin_round(own, round_index=index)
            row = 2 * silo + index
            images, labels = (part[row : row + 1] for part in digits)
            truth[index, silo] = (images, labels)
            loss = torch.nn.functional.cross_entropy(own(images), labels)
            own.zero_grad()
            loss.backward()
            torch.optim.SGD(own.parameters(), 0.1).step()
            defense.end_round(own, round_index=index)
            sent.append(dict(defense.seal(own, own.state_dict(), samples=1)))
            capture.add(ClientUpdate(dict(state), sent[-1], 0.1, 1, silo, index))
        state = {name: sum(one[name] for one in sent) / 3 for name in state}
    save_truth(tmp_path / "truth.safetensors", truth)
    steps = {"steps": 150, **FEW}
    options = [f"inverting_gradients.{name}={value}" for name, value in steps.items()]
    result = invoke(
        *(tmp_path / "capture", "--truth", tmp_path / "truth.safetensors"),
        *("--vault", tmp_path / "vault", "--model", "test_audit:LeNet", "--workers", 1),
        *(word for option in options for word in ("--set", option)),
        *("--knowledge", "adaptive"),
        output=tmp_path / "out",
    )
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    scores = {
        (row["defense"], row["knowledge"], row["round"]): row["ssim_aligned"]["mean"]
        for row in report["leakage"]
    }
    for index in range(2):
        assert scores["keylock:rotated", "oracle", index] > 0.5
        assert scores["none", "none", index] > 0.5
        assert scores["keylock:rotated", "adaptive", index] < 0.15


def test_labels_that_a_decoder_is_given_stay_what_they_are():
    """Who has none takes the likeliest; who has them does not lose them, nor does his caller."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 4))
    updates = [
        train_update(model, torch.rand(1, 1, 12, 12), torch.tensor([label]), learning_rate=0.1)
        for label in (1, 2)
    ]
    public = PublicData(torch.rand(40, 1, 12, 12), torch.arange(40) % 4)
    given = torch.tensor([[1], [2]])
    transform = RotationTransform.of(model)
    known = Knowledge(
        "simulating", (1, 12, 12), 4, labels=given, public=public, update_transform=transform
    )
    generator = torch.Generator().manual_seed(0)
    found = learned(steps=3, locks=4).reconstruct(
        updates, model, knowledge=known, generator=generator
    )
    assert found.labels.tolist() == given.tolist() == [[1], [2]]
