"""Sums of silos' updates: what a silo that colludes has of the others under a lock that seals."""

from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from test_audit import attack, digits, folder, invoke, net, protection  # noqa: F401  # two fixtures
from torch import nn

from fedml_keylock.builtin import keylock
from fedml_keylock.errors import AttackError
from fedml_keylock.evaluation.audit import Protection, audit, probe
from fedml_keylock.evaluation.audit.plan import tasks_of
from fedml_keylock.evaluation.audit.sums import averaged, groups_of, sums_of
from fedml_keylock.evaluation.audit.twins import undefended
from fedml_keylock.evaluation.leakage import sum_label
from fedml_keylock.inversion import LocalTraining, PublicData, dlg, inverting_gradients, spear


def mlp(width=200):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))


def subject_of(digits, model, count, lock="sealed", **rest):  # noqa: F811
    known = None
    if lock == "paper":
        known = protection(model)
    elif lock is not None:
        defense = keylock({"lock": lock})
        known = Protection(defense.title, defense.surrogate(model))
    images, labels = (part[:count] for part in digits)
    public = PublicData(*(part[20:] for part in digits))
    return probe(model, images, labels, protection=known, public=public, **rest)


def by_row(report):
    return {(row.defense, row.knowledge): row for row in report.leakage}


def test_spear_takes_a_sum_of_silos_apart_exactly(digits, tmp_path):  # noqa: F811
    """And what a lock that seals lets a colluding silo have is the undefended sum, rounded."""
    subject = subject_of(digits, mlp(), 8, learning_rate=1.0)
    report = audit(subject, {"spear": spear(samples=40_000)}, ["oblivious"], sums=(1, 4, 8),
                   output=tmp_path)  # fmt: skip
    rows = by_row(report)
    for silos in (1, 4, 8):
        for defense in ("none", "keylock:sealed"):
            row = rows[defense, sum_label(silos)]
            assert row.images == 8
            assert row.cost["n"] == 8 // silos
    for silos in (1, 4, 8):
        print(silos, rows["none", sum_label(silos)].metrics["psnr"], rows["keylock:sealed", sum_label(silos)].metrics["psnr"])
    print(report.table()); print(report.verdict()); print(report.job)
