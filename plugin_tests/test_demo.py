"""The main job as a user starts it: real ranks, digits and attacks, and what it must show."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fedml_keylock.demo import MARK, _empty
from fedml_keylock.errors import HostError

DEMO = [sys.executable, "-c", "from fedml_keylock.cli import main; main()", "demo"]


def run_demo(folder: Path, *options: str, limit: int = 900):
    done = subprocess.run(
        [*DEMO, "--output", str(folder), *options],
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "report.json").read_text()), done.stdout


def ssim(report, defense, knowledge, stage="untrained", attack="inverting_gradients"):
    (row,) = [
        r
        for r in report["leakage"]
        if (r["defense"], r["knowledge"], r["stage"], r["attack"])
        == (defense, knowledge, stage, attack)
    ]
    return row["ssim_aligned"]["mean"]


PAPER, SEALED = "keylock:paper:first", "keylock:sealed"


class Pictures(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.found.append(dict(attrs))


def test_only_the_jobs_of_an_earlier_demo_are_deleted(tmp_path):
    jobs = _empty(tmp_path / "jobs")
    (jobs / "none").mkdir()
    assert [path.name for path in _empty(jobs).iterdir()] == [MARK]
    (tmp_path / "other" / "jobs").mkdir(parents=True)
    (tmp_path / "other" / "jobs" / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(jobs)
    for folder in (tmp_path / "other" / "jobs", tmp_path / "link"):
        with pytest.raises(HostError, match=f"^{folder}: "):
            _empty(folder)
    assert (tmp_path / "other" / "jobs" / "notes.txt").read_text() == "mine"
    assert jobs.is_dir()


def test_the_quick_demo_tells_its_story(tmp_path):
    report, said = run_demo(tmp_path, "--quick")
    assert report["schema"] == "fedml-keylock/report/1"
    assert ssim(report, "none", "none") > 0.6
    assert ssim(report, PAPER, "adaptive") > ssim(report, PAPER, "oblivious") + 0.05
    assert ssim(report, SEALED, "adaptive") < 0.15
    assert ssim(report, SEALED, "oracle") > 0.3
    assert ssim(report, SEALED, "colluding silo, sum of 2 others") > 0.6
    assert {"no defense (undefended baseline), settings", "sealed lock, settings"} < {
        *report["job"]["inputs"]
    }
    accuracy = {name: scores["server"]["mean"] for name, scores in report["accuracy"].items()}
    assert accuracy["none"] > 0.85
    assert report["accuracy"][SEALED]["own_lock"]["mean"] > 0.5
    assert report["accuracy"][SEALED]["fresh_lock"]["mean"] < 0.3
    assert report["verdict"] in said
    assert (tmp_path / "leakage.png").stat().st_size > 10_000
    page = Pictures()
    page.feed((tmp_path / "report.html").read_text())
    assert sum((one["alt"] or "").endswith(", picture 1") for one in page.found) == 5
    assert all(p["alt"] and p["src"].startswith("data:image/png") for p in page.found)
    vaults = list(tmp_path.glob("jobs/*/keylock_vault/silo-*.safetensors"))
    assert len(vaults) == 6
    assert {p.stat().st_mode & 0o777 for p in vaults} == {0o600}


@pytest.mark.long
def test_the_full_demo(tmp_path):
    report, _ = run_demo(tmp_path)
    assert ssim(report, PAPER, "adaptive") >= ssim(report, PAPER, "oblivious") + 0.2
    for attack in ("inverting_gradients", "dlg"):
        assert ssim(report, "none", "none", attack=attack) > 0.6
        assert ssim(report, SEALED, "adaptive", attack=attack) < 0.15
        assert ssim(report, SEALED, "oracle", attack=attack) > 0.3


@pytest.mark.long
def test_accuracy_over_three_seeds(tmp_path):
    reports = [
        run_demo(tmp_path / str(seed), "--train-only", "--seed", str(seed))[0]["accuracy"]
        for seed in (0, 1, 2)
    ]

    def mean(defense, kind):
        return sum(r[defense][kind]["mean"] for r in reports) / len(reports)

    plain = mean("none", "server")
    figures = {f"{d}, {k}": mean(d, k) for d in (PAPER, SEALED) for k in ("own_lock", "fresh_lock")}
    (tmp_path / "accuracy.json").write_text(json.dumps({"none": plain, **figures}))
    print(json.dumps({"none": plain, **figures}, indent=1))  # noqa: T201  # shown with -s
    for defense in (PAPER, SEALED):
        assert mean(defense, "own_lock") > plain - 0.01
    assert mean(SEALED, "fresh_lock") < 0.3


@pytest.mark.long
@pytest.mark.xfail(
    strict=True,
    reason="on one layer of twelve channels a new gamma and beta do as well: the paper's claim "
    "that the model is useless without the key does not hold for the published lock here",
)
def test_a_fresh_published_lock_is_useless(tmp_path):
    report, _ = run_demo(tmp_path, "--train-only")
    assert report["accuracy"][PAPER]["fresh_lock"]["mean"] < 0.3
