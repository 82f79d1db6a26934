"""`fedml-keylock run` of real jobs: what is shown is what happened, and the rest is in the log."""

from __future__ import annotations

import re
import shutil
import stat
import sys
from pathlib import Path

import pytest
from job_harness import Job, run_line, write_job

EXAMPLE = Path(__file__).parents[2] / "examples" / "mnist_cross_silo"
COMMAND = [sys.executable, "-c", "from fedml_keylock.cli import main; main()", "run"]


def log_of(job: Job) -> Path:
    (log,) = (job.folder / "logs").glob("run-*.log")
    return log


def fact(job: Job, name: str) -> str:
    """A line of the summary."""
    (line,) = [line for line in job.output.splitlines() if line.startswith(f"{name}  ")]
    return line.removeprefix(name).strip()


def assert_log_is_the_job_s(job: Job) -> str:
    log = log_of(job)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert f"log{' ' * 20}logs/{log.name}" in job.output
    text = log.read_text()
    assert text.count("[INFO]") > 50
    assert "[INFO]" not in job.output
    return text


@pytest.mark.parametrize("told", [False, pytest.param(True, marks=pytest.mark.long)])
def test_the_summary_is_of_the_job(told, tmp_path):
    write_job(tmp_path, {"tell_accuracy": told, "save_model": "models"})
    line = [*COMMAND, "-n", "3", "job_main.py", "--cf", "fedml_config.yaml"]
    job = run_line(line, tmp_path)
    assert job.status == 0, job.output
    text = assert_log_is_the_job_s(job)
    assert len(job.output.splitlines()) <= 25
    assert re.search(r"^round [12] of 2", job.output, re.MULTILINE)
    assert fact(job, "done").startswith("3 ranks, 2 rounds, in ")
    assert fact(job, "lock") == "keylock:sealed"
    reads = fact(job, "the server could read")
    assert reads.startswith("no update and no average; ")
    assert reads.endswith("; silos' accuracies") == told
    assert fact(job, "final model") == "models/silo-N.safetensors (2 files)"
    # as many bytes as silos have handed to MPI
    (bytes_told,) = {max(sum(m["bytes"] for m in job.messages(rank)) for rank in (1, 2))}
    assert fact(job, "a silo sent").startswith(f"{bytes_told / 1e3:.1f} kB, ")
    # what silos measure is not told unless it is asked for
    found = [*(tmp_path / "keylock_vault").glob("silo-*.log")]
    own = "".join(path.read_text() for path in found)
    shares = [float(x) for x in re.findall(r"round 1: accuracy in the silo ([\d.]+)", own + text)]
    assert len(shares) == 2
    assert fact(job, "accuracy").startswith(f"{sum(shares) / 2:.4f} after round 2")
    assert ("accuracy" in text) == told
    assert ("; silos wrote it to keylock_vault/silo-N.log" in job.output) != told


@pytest.mark.long
def test_the_example_is_at_most_25_lines(tmp_path):
    for path in EXAMPLE.glob("*.*"):
        shutil.copy(path, tmp_path)
    line = [*COMMAND, "-n", "4", "main.py", "--cf", "fedml_config.yaml"]
    job = run_line(line, tmp_path, ranks=4)
    assert job.status == 0, job.output
    assert_log_is_the_job_s(job)
    assert len(job.output.splitlines()) <= 25
    assert fact(job, "done").startswith("4 ranks, 20 rounds, in ")
    assert float(fact(job, "accuracy").split()[0]) > 0.9


@pytest.mark.long
def test_verbose_shows_all_and_keeps_no_log(tmp_path):
    write_job(tmp_path, {})
    line = [*COMMAND, "-n", "3", "--verbose", "job_main.py", "--cf", "fedml_config.yaml"]
    job = run_line(line, tmp_path)
    assert job.status == 0, job.output
    assert job.output.count("[INFO]") > 50
    assert "fedml-keylock tells" not in job.output
    assert not (tmp_path / "logs").exists() or not [*(tmp_path / "logs").iterdir()]


@pytest.mark.long
def test_an_undefended_job_is_said_to_be_one(tmp_path):
    write_job(tmp_path, None)
    job = run_line([*COMMAND, "-n", "3", "job_main.py", "--cf", "fedml_config.yaml"], tmp_path)
    assert job.status == 0, job.output
    assert fact(job, "lock") == "none: this job was not defended"
    assert fact(job, "the server could read") == "every silo's update as it is"
    assert len(set(job.ours)) == 1
    assert "NOT defended" in job.ours[0]
