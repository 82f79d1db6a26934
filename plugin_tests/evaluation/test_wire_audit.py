"""Audits under locks at the wire: who has the keys opens what is sent, and others do not."""

import pytest
from test_audit import attack, digits  # noqa: F401  # a fixture
from wire_subjects import subject_of

from fedml_keylock.evaluation.audit import audit
from fedml_keylock.evaluation.audit.plan import tasks_of


@pytest.mark.parametrize("lock", ["sealed", "rotated"])
def test_levels_get_what_they_know(digits, lock):  # noqa: F811
    subject = subject_of(digits, count=2, lock=lock)
    tasks = tasks_of(subject, attack(), ["oblivious", "adaptive", "insider"])
    found = {task.trial.level: task for task in tasks if task.trial.variant == subject.defense}
    assert set(found) == {"oblivious", "adaptive", "insider", "oracle"}
    for level, task in found.items():
        same = [one is other for one, other in zip(task.updates, subject.updates, strict=True)]
        assert all(same) == (level in ("oblivious", "adaptive"))
        assert task.given is None
        assert task.knowledge().secrets is None


@pytest.mark.parametrize(
    ("lock", "levels"),
    [
        ("sealed", ("oblivious", "adaptive", "insider")),
        ("rotated", ("oblivious", "adaptive")),
    ],
)
def test_an_audit_says_that_the_key_is_what_others_lack(digits, tmp_path, lock, levels):  # noqa: F811
    subject = subject_of(digits, lock=lock)
    report = audit(subject, attack(steps=150, restarts=2), levels, output=tmp_path)
    scores = {
        (row.defense, row.knowledge): row.metrics["ssim_aligned"]["mean"] for row in report.leakage
    }
    assert scores["none", "none"] > 0.6
    assert scores[f"keylock:{lock}", "oracle"] > 0.6
    for level in levels:
        assert scores[f"keylock:{lock}", level] < 0.15
    assert f"{lock} lock: withstood the attacks tried" in str(report.verdict())
