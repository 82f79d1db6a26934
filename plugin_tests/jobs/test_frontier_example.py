"""The frontier example: its points, what its table says, and that it goes on where it stopped."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import save_file

from fedml_keylock import KeyLockConfig, lock_model
from fedml_keylock.evaluation.audit.controls import recovered
from fedml_keylock.locks.entropy import seeded_uniform

FRONTIER = Path(__file__).parents[2] / "examples" / "frontier"
OWN = (
    "accuracy",
    "attackers",
    "files",
    "leakage",
    "picture",
    "points",
    "splits",
    "table",
    "training",
)
OTHERS = ("data", "model")  # of the example beside it


@pytest.fixture
def frontier(monkeypatch):
    monkeypatch.syspath_prepend(str(FRONTIER))
    for name in (*OWN, *OTHERS):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in OWN})
    for name in (*OWN, *OTHERS):
        sys.modules.pop(name, None)


def interval(mean):
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "n": 3}


def attacker(name, score, *, knows=True):
    shown = ("ssim_aligned", "ssim", "psnr", "label_accuracy", "cost", "lost")
    scores = dict.fromkeys(shown, interval(score))
    return {"knows": knows, "name": name, "batch": 1, **scores}


def good_row():
    """A point that reaches the target."""
    stage = {
        "attackers": {
            "joint, batch 1": attacker("joint", 0.05),
            "simulating, batch 1": attacker("simulating", 0.50),
            "oracle, batch 1": attacker("oracle", 0.80, knows=False),
            "twin, batch 1": attacker("twin", 0.95, knows=False),
        },
        "floors": {"1": {"mean image of the class": interval(0.45)}},
        "plain": 0.9,
        "strongest": "simulating, batch 1",
    }
    return {
        "point": "some-lock",
        "family": "paper",
        "net": "lenet",
        "data": "mnist",
        "silos": 3,
        "split": "iid",
        "rounds": 20,
        "locked": True,
        "diverged": 0,
        "own": interval(0.95),
        "own_minus_plain": interval(-0.3),
        "fresh": interval(0.1),
        "fitted": interval(0.75),
        "from_scratch": interval(0.7),
        "step_ratio": 1.03,
        "upload_ratio": 1.0,
        "stages": {"untrained": stage, "trained": deepcopy(stage)},
    }


def test_every_point_can_be_put_on_the_nets_that_it_is_for(frontier):
    for point in frontier.points.POINTS.values():
        assert set(point.nets) <= set(frontier.points.NETS)
        assert not (point.lock and point.rival)
        for net in point.nets:
            setting = frontier.splits.Setting(net, "mnist", 3, "iid", 0, 2)
            sections = yaml.safe_load(yaml.safe_dump(frontier.training.config(point, setting)))
            assert sections["defense_args"]["enable_defense"] is (point.lock is not None)
            if point.lock is not None:
                config = KeyLockConfig.from_mapping(sections["defense_args"]["keylock"])
                uniform = seeded_uniform(torch.Generator().manual_seed(0))
                net_of = frontier.splits.first_model(net, 0)
                assert lock_model(net_of, config, uniform=uniform).layers
        sent = {"w": torch.randn(50, generator=torch.Generator().manual_seed(0))}
        for transform in frontier.points.transforms(point.rival):
            sent = transform.apply(sent, torch.Generator().manual_seed(1))
        assert sent["w"].isfinite().all()


@pytest.mark.parametrize("split", ["iid", "dirichlet"])
def test_silos_share_the_training_images_out(frontier, split):
    setting = frontier.splits.Setting("lenet", "mnist", 10, split, 0, 2)
    silos, rest = frontier.splits.parts(setting)
    every = torch.cat([*silos, rest])
    assert len(silos) == 10
    assert len(rest) == 1000
    assert len(every.unique()) == len(every) == 5000


def test_a_point_that_reaches_the_target_fails_nothing(frontier):
    assert frontier.table.judged(good_row()) == ([], [])


@pytest.mark.parametrize(
    ("fails", "change"),
    [
        ("accuracy", {"own_minus_plain": interval(-0.6)}),
        ("fresh", {"fresh": interval(0.21)}),
        ("fitted", {"fitted": interval(0.83)}),
        ("step", {"step_ratio": 1.06}),
        ("training (diverged in 1 seeds)", {"diverged": 1}),
    ],
)
def test_a_condition_is_named_that_a_point_fails(frontier, fails, change):
    assert frontier.table.judged(good_row() | change) == ([fails], [])


@pytest.mark.parametrize(
    ("fails", "title", "score"),
    [
        ("leakage, trained", "joint, batch 1", 0.56),
        ("oracle, trained", "oracle, batch 1", 0.2),
    ],
)
def test_an_attacker_is_held_against_a_point_at_the_stage_where_it_succeeds(
    frontier, fails, title, score
):
    row = good_row()
    row["stages"]["trained"]["attackers"][title]["ssim_aligned"] = interval(score)
    assert frontier.table.judged(row) == ([fails], [])


def test_an_attack_that_fails_without_any_defense_shows_nothing(frontier):
    row = good_row()
    row["stages"]["untrained"]["plain"] = 0.59
    assert frontier.table.judged(row) == (["undefended, untrained"], [])


def test_what_was_not_measured_is_named_and_passes_nothing(frontier):
    row = good_row() | {"fitted": None}
    del row["stages"]["trained"]
    missing = ["leakage, trained", "undefended, trained", "oracle, trained", "fitted"]
    assert frontier.table.judged(row) == ([], missing)


def test_a_rival_is_not_asked_for_what_only_a_lock_has(frontier):
    row = good_row() | {"locked": False, "fresh": None, "fitted": None}
    for stage in row["stages"].values():
        del stage["attackers"]["oracle, batch 1"]
    assert frontier.table.judged(row) == ([], [])


def test_the_strongest_attacker_has_no_private_state(frontier):
    assert frontier.table.strongest(good_row()["stages"]["trained"]) == "simulating, batch 1"


def test_the_page_and_the_picture_show_the_row(frontier, tmp_path):
    row = good_row() | {"fails": ["step"], "not_measured": []}
    table, numbers = frontier.table.write([row], tmp_path)
    cells = "0.50 [0.49, 0.51] (simulating, batch 1)"
    assert f"| some-lock | -0.3 [-0.3, -0.3] | 10 | 75 | 70 | {cells} |" in table.read_text()
    assert json.loads(numbers.read_text())["rows"] == [row]
    row["own"]["n"] += 2  # where not every seed has been attacked
    table, _ = frontier.table.write([row], tmp_path)
    few = cells.replace("batch 1)", f"batch 1, {interval(0)['n']} of {interval(0)['n'] + 2} seeds)")
    assert table.read_text().count(few) == 2
    assert frontier.picture.draw([row], tmp_path / "frontier.png").stat().st_size > 10_000


def test_a_finished_training_is_not_run_again(frontier, tmp_path, monkeypatch):
    ran = []

    def run(line, *, cwd, **_):
        ran.append(line)
        state = frontier.splits.first_model("lenet", 0).state_dict()
        save_file(state, cwd / "global.safetensors")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    point = frontier.points.POINTS["dp-1e-2"]
    setting = frontier.splits.Setting("lenet", "mnist", 3, "iid", 0, 2)
    assert frontier.training.train(point, setting, tmp_path / "some")
    assert not frontier.training.train(point, setting, tmp_path / "some")
    assert len(ran) == 1
    # another point of that name is another training, and what was measured of the first is gone
    (tmp_path / "some" / "accuracy.json").touch()
    other = frontier.points.noised("dp-1e-2", 2e-2)
    assert frontier.training.train(other, setting, tmp_path / "some")
    assert not (tmp_path / "some" / "accuracy.json").exists()


def test_a_training_that_diverged_is_a_result_and_not_drawn_again(frontier, tmp_path, monkeypatch):
    ran = []

    def run(line, *, stdout, **_):
        ran.append(line)
        stdout.write("fedml-keylock: silo 0, round 1: features.0.weight is not finite\n")
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(subprocess, "run", run)
    setting = frontier.splits.Setting("lenet", "mnist", 3, "iid", 0, 2)
    for _ in range(2):
        with pytest.raises(frontier.training.DivergedError, match="not finite"):
            frontier.training.train(frontier.points.POINTS["paper-all"], setting, tmp_path / "a")
    assert len(ran) == 1


def test_a_result_counts_only_with_the_settings_that_it_was_made_with(frontier, tmp_path):
    path = tmp_path / "one.json"
    frontier.files.save(path, {"ssim": 0.5}, {"steps": 10})
    assert frontier.files.load(path, {"steps": 10}) == {"ssim": 0.5}
    assert frontier.files.load(path, {"steps": 20}) is None
    frontier.files.save(path, {"refused": "no such layer"}, {"steps": 10})
    assert frontier.files.load(path, {"steps": 10}) is None


def subject_of(frontier, tmp_path, point, name, *, batch=1, rate=1e6):
    setting = frontier.splits.Setting("lenet", "mnist", 3, "iid", 0, 2)
    effort = frontier.attackers.Effort(images=6, restarts=1, steps=1, rate=rate)
    one = frontier.attackers.attackers("lenet")[name][-1]
    arguments = (frontier.points.POINTS[point], setting, tmp_path, effort, "untrained", batch, one)
    subject = frontier.leakage._subject(*arguments)
    return subject, frontier.leakage._tasks(arguments[0], subject, one, effort, 0)


def test_rounds_are_pooled_of_silos_that_have_one_lock_each(frontier, tmp_path):
    subject, _ = subject_of(frontier, tmp_path, "paper-all", "temporal")
    assert [update.silo for update in subject.updates] == [0, 1, 2, 0, 1, 2]
    for value in subject.secrets.values():
        assert torch.equal(value[:3], value[3:])
        assert not torch.equal(value[0], value[1])


def test_a_silo_has_the_sum_of_the_others(frontier, tmp_path):
    """As one step on all their images: what is in the average, whatever sealed it."""
    seen, (task,) = subject_of(frontier, tmp_path, "sealed", "others", batch=2, rate=0.1)
    whole, _ = subject_of(frontier, tmp_path, "none", "joint", batch=2, rate=0.1)
    assert task.trial.variant == "none"
    for sum_of_two, one_batch in zip(seen.updates, whole.updates, strict=True):
        for name in one_batch.after:
            wanted = one_batch.pseudo_gradient(name)
            found = sum_of_two.pseudo_gradient(name)
            assert (found - wanted).abs().max() < 1e-3 * wanted.abs().max()
    # and of one message nothing, with what a colluding silo knows
    one, _ = subject_of(frontier, tmp_path, "sealed", "insider", rate=0.1)
    update, *_ = recovered(one, colluding=True)
    assert update.pseudo_gradient("classifier.weight").abs().max() > 1


def test_every_other_attacker_meets_a_lock_of_its_own(frontier, tmp_path):
    subject, tasks = subject_of(frontier, tmp_path, "paper-all", "joint")
    for value in subject.secrets.values():
        assert len({tuple(one.flatten().tolist()) for one in value}) == 6
    assert {task.trial.level for task in tasks} == {"adaptive"}


def test_an_attacker_knows_what_a_rival_does_and_the_oblivious_does_not(frontier, tmp_path):
    _, (task,) = subject_of(frontier, tmp_path, "pruning-1%", "joint")
    assert [part.keep for part in task.knowledge().transforms] == [0.01]
    _, (ignorant,) = subject_of(frontier, tmp_path, "pruning-1%", "oblivious")
    assert ignorant.knowledge().transforms == ()
    assert task.id != ignorant.id
    share = [float((task.updates[0].pseudo_gradient(n) != 0).float().mean()) for n in TARGETS]
    assert max(share) < 0.02


def test_the_oracle_who_simulates_has_the_silos_own_locks_and_a_result_of_his_own(
    frontier, tmp_path
):
    subject, (task,) = subject_of(frontier, tmp_path, "paper-all", "oracle")
    draw = torch.Generator().manual_seed(0)
    drawn = task.knowledge().secrets.draw(50, draw)
    for name, value in subject.secrets.items():
        own = {tuple(one.flatten().tolist()) for one in value}
        assert {tuple(one.flatten().tolist()) for one in drawn[name]} == own
    _, (ignorant,) = subject_of(frontier, tmp_path, "paper-all", "simulating")
    assert ignorant.trial.level == task.trial.level == "simulating"
    assert task.id != ignorant.id


TARGETS = ("features.2.weight", "classifier.weight")


def small(output, *more):
    line = [sys.executable, str(FRONTIER / "run.py"), "--output", str(output), "--seeds", "1"]
    line += ["--points", "paper-all,sealed,rotated,dp-1e-2", "--rounds", "2", "--images", "2"]
    line += ["--restarts", "1", "--steps", "5", "--learning", "3", "--batches", "1"]
    line += ["--workers", "1", *more]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.long
def test_points_end_to_end_and_once_more(tmp_path):
    said = small(tmp_path, "--attackers", "oblivious,joint,simulating,insider,others,oracle,twin")
    assert said.count(": trained") == 5
    rows = {
        row["point"]: row for row in json.loads((tmp_path / "frontier.json").read_text())["rows"]
    }
    assert list(rows) == ["none", "paper-all", "sealed", "rotated", "dp-1e-2"]
    assert rows["sealed"]["own_by_seed"] == pytest.approx(rows["none"]["own_by_seed"], abs=2e-3)
    assert not any(row["not_measured"] for row in rows.values())
    assert set(rows["paper-all"]["stages"]) == {"untrained", "trained"}
    for name in ("table.md", "frontier.png"):
        assert (tmp_path / name).stat().st_size > 1000
    again = small(tmp_path, "--attackers", "oblivious,joint,simulating,insider,others,oracle,twin")
    assert [Path(line).name for line in again.splitlines()] == [
        "table.md",
        "frontier.json",
        "frontier.png",
    ]


@pytest.mark.long
def test_a_wrong_word_is_one_line(tmp_path):
    line = [sys.executable, str(FRONTIER / "run.py"), "--points", "moon"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("Error: Invalid value for '--points'")
