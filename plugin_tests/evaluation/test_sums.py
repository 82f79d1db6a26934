"""Sums of silos' updates: what a silo that colludes has of the others under a lock that seals."""

import json
import re
from dataclasses import replace

import pytest
import torch
from test_audit import QUICK, attack, digits, folder, invoke, net, protection  # noqa: F401
from torch import nn

from fedml_keylock.builtin import keylock
from fedml_keylock.errors import AttackError, ConfigError
from fedml_keylock.evaluation.audit import Protection, audit, probe
from fedml_keylock.evaluation.audit.controls import undefended
from fedml_keylock.evaluation.audit.plan import tasks_of
from fedml_keylock.evaluation.audit.sums import averaged, groups_of, sums_of
from fedml_keylock.evaluation.leakage import sum_label
from fedml_keylock.inversion import Knowledge, LocalTraining, inverting_gradients, spear
from fedml_keylock.inversion.engine.assemble import assemble
from fedml_keylock.inversion.engine.local_training import draw_orders
from fedml_keylock.inversion.engine.observe import observe

DIGIT = Knowledge("oblivious", input_shape=(1, 28, 28), classes=10)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))


def subject_of(digits, count=4, *, lock="sealed", model=None, **rest):  # noqa: F811
    model, known = model or net(), None
    if lock == "paper":
        known = protection(model)
    elif lock is not None:
        defense = keylock({"lock": lock})
        known = Protection(defense.title, defense.attacker_model(model))
    return probe(model, *(part[:count] for part in digits), protection=known, **rest)


def decibels(images, truth):
    """PSNR that does not end at 100."""
    return -10 * (images - truth).double().square().flatten(1).mean(1).log10()


def test_spear_takes_a_sum_of_silos_apart_exactly(digits, tmp_path):  # noqa: F811
    """Under a lock that seals it is the undefended sum, but for the fixed point."""
    subject = subject_of(digits, 9, model=mlp(), learning_rate=1.0)
    report = audit(
        subject,
        {"spear": spear(samples=40_000)},
        ["oblivious"],
        sums=(1, 4, 8),
        output=tmp_path,
        metrics={"ssim_aligned": decibels, "psnr": decibels},
    )
    rows = {(row.defense, row.knowledge): row for row in report.leakage}
    for defense in ("none", "keylock:sealed"):
        for silos, images in {1: 9, 4: 8, 8: 8}.items():
            row = rows[defense, sum_label(silos)]
            assert (row.images, row.cost["n"]) == (images, images // silos)
            assert row.metrics["psnr"]["low"] > 100
            assert row.metrics["label_accuracy"]["mean"] == 1.0
    assert ("keylock:sealed", "oblivious") not in rows  # of what is sent there is no batch
    shown = {gallery.title: gallery.images for gallery in report.galleries}
    assert decibels(shown[f"none, spear, {sum_label(4)}"], report.originals).min() > 100
    said = report.verdict().splitlines()[-1]
    # for a sum is not what the server has
    assert said.startswith("sealed lock: no verdict. No attack on a single update has a result.")
    assert "A colluding silo with the sum of 8 others reaches" in said
    assert re.search(r"spear +sum of 4 others +0", report.table())
    assert "colluding silo, sum of" in report.html()


def test_the_updates_of_a_sum_are_of_one_round_and_stage(digits):  # noqa: F811
    subject = subject_of(digits, 7, lock=None)
    rounds = (2, 5, 2, 2, 5, 5, 2)
    moved = tuple(replace(u, round=r) for u, r in zip(subject.updates, rounds, strict=True))
    subject = replace(subject, updates=moved, stages=("trained",) * 7)
    assert groups_of(subject, 2) == [[0, 2], [3, 6], [1, 4]]
    assert groups_of(subject, 4) == [[0, 2, 3, 6]]
    with pytest.raises(AttackError, match=r"a sum of 5: .* more than 4 audited .*--images"):
        groups_of(subject, 5)


def test_silos_weigh_by_their_samples(digits):  # noqa: F811
    one, other = subject_of(digits, 2, lock=None).updates
    made = averaged([replace(one, samples=3), other])
    for name, value in made.after.items():
        assert torch.allclose(value, 0.75 * one.after[name] + 0.25 * other.after[name])
    assert made.samples == 4
    odd = replace(other, before={n: t + 1 for n, t in other.before.items()})
    for different in (odd, replace(other, learning_rate=1.0)):
        with pytest.raises(AttackError, match="one model at one learning rate"):
            averaged([one, different])


@pytest.mark.parametrize(
    ("lock", "said"),
    [("paper", "no step of an open model"), ("rotated", "level insider"), ("sealed", "--vault")],
)
def test_locks_without_such_a_sum_are_refused_by_name(digits, lock, said):  # noqa: F811
    subject = subject_of(digits, lock=lock)
    if lock == "sealed":
        subject = replace(subject, secrets=None)
    with pytest.raises(AttackError, match=f"keylock:{lock}.*{said}"):
        tasks_of(subject, attack(), ["oblivious"], sums=[2])


def test_steps_that_do_not_add_up_are_simulated_silo_by_silo(digits):  # noqa: F811
    """As those under batch normalisation, each by its own batch's statistics."""
    torch.manual_seed(0)
    norm = nn.Sequential(nn.Conv2d(1, 4, 5, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(),
                         nn.Linear(256, 10))  # fmt: skip
    several = LocalTraining(batch_size=1, epochs=2)
    for model, given, wanted in (
        (net(), None, None),
        (net(), several, several),
        (norm, None, LocalTraining(batch_size=2)),
    ):
        subject = subject_of(digits, 8, lock=None, model=model, batch=2, training=given)
        sums = sums_of(subject, undefended(subject), 4)
        assert sums.training == wanted
        known = replace(DIGIT, batch=8, silos=4, training=wanted, labels=subject.labels.view(1, 8))
        costs = {}
        for told in (known, replace(known, silos=1), replace(known, training=None)):
            objective = assemble(
                inverting_gradients(),
                sums.updates["none"],
                observe(sums.updates["none"], model, told),
                told,
                told.labels,
                torch.Generator(),
            )
            costs[told.silos, told.training] = objective.value(subject.images.view(1, -1))[0]
        assert costs.pop((4, wanted)) < 1e-6
        others = [cost for (_, training), cost in costs.items() if wanted or training]
        assert all(cost > 1e-4 for cost in others)


def test_a_silo_s_order_is_of_its_own_images():
    training = LocalTraining(batch_size=1, epochs=3, order="searched")
    known = replace(DIGIT, batch=6, silos=2, training=training)
    found = draw_orders(known, updates=4, restarts=5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.unflatten(2, (2, 3)).sort(3).values.flatten(2),
                       torch.arange(6).expand(20, 3, 6))  # fmt: skip
    assert len({tuple(row.flatten().tolist()) for row in found}) > 10
    crossed = torch.tensor([[[3, 1, 2, 0, 4, 5]] * 3])
    with pytest.raises(AttackError, match="each image once"):
        draw_orders(
            replace(known, training=replace(training, order=crossed)),
            updates=1,
            restarts=1,
            generator=torch.Generator(),
        )
    with pytest.raises(ConfigError, match="6 images are not as many of each of 4 silos"):
        replace(known, silos=4)


def test_the_command_attacks_the_sums_that_it_is_asked_for(folder, tmp_path):  # noqa: F811
    common = ("--model", "test_audit:LeNet", "--data", folder, "--images", 4, *QUICK)
    made = invoke(*common, "--lock", "sealed", "--sum", "1, 2", output=tmp_path / "out")
    assert made.exit_code == 0, made.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    found = {(row["defense"], row["knowledge"]): row["images"] for row in report["leakage"]}
    for defense in ("none", "keylock:sealed"):
        assert [found[defense, sum_label(silos)] for silos in (1, 2)] == [4, 4]
    assert "weigh the same" in report["job"]["sums"]
    made = invoke(*common, "--lock", "sealed", "--sum", "9", output=tmp_path / "no")
    assert (made.exit_code, "no round of untrained" in made.output) == (1, True)
    made = invoke(*common, "--sum", "0,2", output=tmp_path / "no")
    assert (made.exit_code, "--sum 0,2: not numbers of silos" in made.output) == (2, True)


def test_noise_of_a_job_that_is_not_there_is_not_made_up(folder, tmp_path):  # noqa: F811
    config = tmp_path / "job.yaml"
    config.write_text(
        "defense_args:\n  enable_defense: true\n  defense_type: keylock\n  keylock:\n"
        "    {colluders: 1, noise: {clip: 1.0, epsilon: 8, delta: 1.0e-5}}\n"
    )
    common = ("--model", "test_audit:LeNet", "--data", folder, "--images", 4, *QUICK)
    made = invoke(*common, "--config", config, "--sum", "2", output=tmp_path / "no")
    assert made.exit_code == 1
    assert "adds noise by how many silos a job has" in made.output
