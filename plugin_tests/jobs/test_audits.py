"""Audits within a job: silos that attack themselves, and a server that attacks round by round."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from job_harness import LIMIT, Job, run_line
from safetensors.torch import load_file

from fedml_keylock.host.launch import command

EXAMPLE = Path(__file__).parents[2] / "examples" / "mnist_cross_silo"
SEARCH = {"steps": 60, "learning_rate": 0.2, "secret_learning_rate": 0.02, "total_variation": 0.01}
TWO_SILOS = {"client_num_in_total": 2, "client_num_per_round": 2, "worker_num": 2, "comm_round": 2}


@pytest.fixture
def run_example(tmp_path):
    """The example's job on two silos of real digits, with an attack section of the test's."""

    def run(*, keylock, single_digit_rounds=0, **inversion) -> Job:
        for path in EXAMPLE.glob("*.py"):
            shutil.copy(path, tmp_path)
        sections = yaml.safe_load((EXAMPLE / "fedml_config.yaml").read_text())
        for name, value in (TWO_SILOS | {"single_digit_rounds": single_digit_rounds}).items():
            next(section for section in sections.values() if name in section)[name] = value
        sections["defense_args"]["keylock"] = keylock
        sections["defense_args"]["enable_defense"] = keylock is not None
        sections["attack_args"] = {
            "enable_attack": True,
            "attack_type": "gradient_inversion",
            "gradient_inversion": {"attacks": {"inverting_gradients": SEARCH}} | inversion,
        }
        (tmp_path / "fedml_config.yaml").write_text(yaml.safe_dump(sections))
        line = command(3, ["main.py", "--cf", "fedml_config.yaml"])
        return run_line(line, tmp_path, limit=3 * LIMIT)

    return run


ONCE = """
from torch.nn.functional import multi_margin_loss as loss
"""
"""A loss that can be minimised, and has no second derivative: no attack that searches runs."""
FAILED = "the loss once:loss has no derivative of its gradient"


def reports(job):
    """What each silo found of itself: (silo, round) to its report."""
    found = (job.folder / "leakage").glob("silo-*/round-*/report.json")
    return {
        (int(path.parts[-3][5:]), int(path.parts[-2][6:])): json.loads(path.read_text())
        for path in found
    }


def test_a_silo_that_gives_away_too_much_sends_nothing(run_example):
    job = run_example(
        keylock=None, side="silo", images=3, rounds=[0], abort_above={"ssim_aligned": 0.3}
    )
    assert job.status != 0
    assert job.ours, job.output[-3000:]
    for line in job.ours:  # silos that find it at the same moment may each say it
        for word in (
            "round 0: its update leaks too much: ssim_aligned 0.",
            "by inverting_gradients, and gradient_inversion.abort_above allows 0.3",
        ):
            assert word in line
    # nothing was trained, of which FedML's trainer would speak
    assert "Client Index" not in job.output


@pytest.mark.long
def test_silos_that_attack_themselves_keep_scores_only(run_example):
    job = run_example(keylock={}, side="silo", images=3)
    assert job.status == 0, job.output[-3000:]
    found = reports(job)
    assert set(found) == {(silo, index) for silo in (0, 1) for index in (0, 1)}
    for report in found.values():
        rows = {(row["defense"], row["knowledge"]): row for row in report["leakage"]}
        # the controls: the same images without a lock, and with the silo's own private state
        assert {("none", "none"), ("keylock:sealed", "oracle")} <= set(rows)
        locked = rows["keylock:sealed", "adaptive"]["ssim_aligned"]["mean"]
        if rows["none", "none"]["stage"] == "untrained":
            assert rows["none", "none"]["ssim_aligned"]["mean"] > locked + 0.3
    kinds = {path.suffix for path in (job.folder / "leakage").rglob("*") if path.is_file()}
    assert kinds == {".json", ".html", ".csv"}
    pages = (job.folder / "leakage").rglob("report.html")
    assert not any("data:image/png" in page.read_text() for page in pages)


@pytest.mark.long
@pytest.mark.parametrize("keylock", [{"lock": "paper"}, {}, {"lock": "rotated"}])
def test_a_silo_audits_what_it_really_sends(run_example, keylock):
    """Under the default lock as it is sealed."""
    job = run_example(
        keylock=keylock,
        single_digit_rounds=1,
        side="silo",
        probe="as_sent",
        attacks={"inverting_gradients": SEARCH | {"steps": 300}},
        rounds=[0],
        images=1,
    )
    assert job.status == 0, job.output[-3000:]
    for report in reports(job).values():
        oracle = [row for row in report["leakage"] if row["knowledge"] == "oracle"]
        plain = [row for row in report["leakage"] if row["knowledge"] == "none"]
        # with its own private state and without a lock the same digit comes out
        for row in (*oracle, *plain[:1]):
            assert row["ssim_aligned"]["mean"] > 0.5
        if keylock != {"lock": "paper"}:
            (knows,) = [row for row in report["leakage"] if row["knowledge"] == "adaptive"]
            assert knows["ssim_aligned"]["mean"] < 0.2
            assert knows["defense"] == "keylock:" + keylock.get("lock", "sealed")


@pytest.mark.long
def test_what_cannot_be_audited_is_not_sent_where_a_limit_is_set(run_example):
    job = run_example(
        keylock={"lock": "paper"},
        side="silo",
        probe="as_sent",
        rounds=[0],
        abort_above={"ssim_aligned": 0.9},
    )
    assert job.status != 0
    assert "it cannot be audited: probe: as_sent follows at most 32 images" in job.ours[0]


@pytest.mark.long
def test_a_server_attacks_inline(run_example):
    job = run_example(keylock={"lock": "paper"}, when="inline", images=2, knowledge=["adaptive"])
    assert job.status == 0, job.output[-3000:]
    for index in (0, 1):
        folder = job.folder / "leakage" / f"round-{index:05d}"
        made = load_file(folder / "inverting_gradients-adaptive.safetensors")
        assert made["images"].shape == (2, 1, 1, 28, 28)
        assert torch.isfinite(made["cost"]).all()
    # the first round was attacked before the second was trained
    said = job.output.index("round-00000/inverting_gradients-adaptive")
    assert said < job.output.index("receive_message. msg_type = 2")


@pytest.mark.long
@pytest.mark.parametrize("settings", [{"side": "silo"}, {"when": "inline"}], ids=["silo", "server"])
def test_attacks_that_fail_end_no_job(run_example, tmp_path, settings):
    (tmp_path / "once.py").write_text(ONCE)
    attacks = {"inverting_gradients": SEARCH | {"labels": "optimise"}}
    job = run_example(keylock=None, loss="once:loss", attacks=attacks, images=1, **settings)
    assert job.status == 0, job.output[-3000:]
    if settings == {"side": "silo"}:
        found = reports(job)
        assert set(found) == {(silo, index) for silo in (0, 1) for index in (0, 1)}
        for report in found.values():
            assert report["leakage"] == []
            (said,) = report["job"]["not run"].values()
            assert said.startswith(f"inverting_gradients: {FAILED}")
    else:
        lines = [line for line in job.output.splitlines() if f"not run: {FAILED}" in line]
        assert len(lines) == 2  # a round each
        assert (job.folder / "leakage" / "capture" / "final.safetensors").exists()


@pytest.mark.long
def test_attacks_that_fail_end_a_job_that_sets_a_limit(run_example, tmp_path):
    (tmp_path / "once.py").write_text(ONCE)
    attacks = {"inverting_gradients": SEARCH | {"labels": "optimise"}}
    limit = {"abort_above": {"ssim_aligned": 0.9}}
    job = run_example(keylock={}, loss="once:loss", side="silo", attacks=attacks, images=1, **limit)
    assert job.status != 0
    for line in job.ours:
        assert f"it cannot be audited: inverting_gradients: {FAILED}" in line
    assert "Traceback" not in job.output
