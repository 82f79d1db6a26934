"""Jobs that must stop: one line that names the thing, on every rank."""

from __future__ import annotations

import re

import pytest

LOCK = {"lock": "paper", "key_length": 64}

BAD_JOBS = {
    "unknown_field": (
        {"settings": {"lok": "paper"}},
        ["keylock.lok", "no such field", "lock"],
    ),
    "unknown_glob": (
        {"settings": {"lock": "paper", "layers": ["features.*"]}},
        ["'features.*'", "matches no", "0, 3, 6, 9"],
    ),
    "linear": ({"settings": LOCK}, ["first layer is linear"]),
    "worker_num": (
        {"settings": LOCK, "worker_num": 3},
        ["worker_num is 3", "4 MPI ranks", "3 were started"],
    ),
    "unknown_defense": (
        {"settings": LOCK, "defense_type": "keylok"},
        ["'keylok'", "keylock"],
    ),
    "unsupported_optimizer": (
        {"settings": LOCK, "federated_optimizer": "LSA"},
        ["federated_optimizer", "LSA", "FedAvg"],
    ),
    "silo_without_plugin": (
        {"settings": LOCK},
        ["rank 2 (silo 1)", "plugin is not active there"],
    ),
    "nan": ({"settings": LOCK}, ["silo 1 (rank 2), round 0", "3.weight is not finite"]),
    "shape": ({"settings": LOCK}, ["silo 1 (rank 2), round 0", "3.weight has shape (2, 4, 3, 3)"]),
    "private": (
        {"settings": {**LOCK, "layers": "all"}},
        ["silo 1 (rank 2), round 0", "3.keylock.bias_gamma is not a public name"],
    ),
    "scale": ({"settings": LOCK}, ["silo 1 (rank 2), round 0", "1.weight is not the constant 1"]),
}


# what stops these is tested elsewhere, and how it stops them is that of another
LONG = ("linear", "unknown_defense", "unsupported_optimizer", "nan", "shape", "scale")


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.long) if c in LONG else c for c in BAD_JOBS]
)
def test_bad_jobs_stop_in_one_line_with_nothing_sent(case, run_job):
    given, words = BAD_JOBS[case]
    job = run_job(case, **given)
    assert job.status != 0
    # ranks that meet the same error at the same moment may each say it
    assert len({line.split(": ", 2)[2] for line in job.ours}) == 1, job.output[-3000:]
    for word in words:
        assert word in job.ours[0]
    assert "Traceback" not in job.output
    for path in job.folder.glob("wire-2.jsonl"):
        assert not any(m["model"] for m in job.messages(2)), f"{path}: silo 1 sent a model"


def test_an_exception_on_one_rank_ends_the_job_on_all(run_job):
    job = run_job("raises", settings=LOCK)
    assert job.status != 0
    assert job.ours == [
        "fedml-keylock: rank 2 failed (RuntimeError; its text is in the silo's own log, "
        "silo-1.log, as log_training is false); the job ends on every rank"
    ]
    assert re.search(r'File ".*job_main.py", line \d+, in train\nRuntimeError\n', job.output)
    # mpiexec carries what is printed to its own host, and an error may say what a silo's data are
    assert "fire" not in job.output
    log = (job.folder / "keylock_vault" / "silo-1.log").read_text()
    assert log.startswith("Traceback")
    assert "RuntimeError: the disk of silo 1 is on fire" in log
