"""The paper's matrix of forty-four cells: its numbers, and that each of its cells can be run."""

from __future__ import annotations

import json
import os
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fedml_keylock.locks import KeyLockConfig, make_lock

EXAMPLE = Path(__file__).parents[2] / "examples" / "paper"
MODULES = ("cells", "central", "data", "federated", "nets", "run", "table", "training")

COLUMNS = """lenet-mnist resnet20-cifar10 resnet20-cifar100 resnet32-cifar10 resnet32-cifar100
resnet18-cifar10 resnet18-cifar100 resnet34-cifar10 resnet34-cifar100 vgg16-cifar10 vgg16-cifar100
"""
PRINTED = {
    "central": "98.09 91.63 67.59 92.34 70.35 91.62 72.15 92.20 73.21 89.13 63.23",
    "central+lock": "98.07 90.58 67.49 91.05 69.89 93.12 75.90 94.68 78.22 93.84 74.86",
    "fedavg": "98.14 91.20 58.58 91.37 61.91 89.50 68.59 89.27 68.30 88.13 61.91",
    "fedavg+lock": "97.45 88.45 61.97 89.29 64.17 91.66 74.19 93.27 76.61 93.54 73.06",
}
"""As the paper prints it: a row for each setting."""
CELLS = [(column, setting) for column in COLUMNS.split() for setting in PRINTED]


@pytest.fixture(scope="module")
def paper():
    """The example's modules, which are called as other examples' are: they leave no trace."""
    before = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    sys.path.insert(0, str(EXAMPLE))
    try:
        yield SimpleNamespace(**{name: __import__(name) for name in MODULES})
    finally:
        sys.path.remove(str(EXAMPLE))
        for name in MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(before)


@pytest.fixture
def start(paper, tmp_path):
    """Start the example with these options; its outcome."""

    def started(*options):
        where = ["--output", str(tmp_path / "results")]
        return CliRunner().invoke(paper.run.main, [*options, *where], catch_exceptions=False)

    return started


@pytest.fixture
def mnist(tmp_path):
    """Thirty-two random pictures to train on and eight to test with, where MNIST's would be."""
    raw, draw = tmp_path / "data" / "MNIST" / "raw", np.random.default_rng(0)
    raw.mkdir(parents=True)
    for part, count in (("train", 32), ("t10k", 8)):
        images = draw.integers(256, size=(count, 28, 28), dtype=np.uint8)
        head = struct.pack(">4I", 2051, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        head = struct.pack(">2I", 2049, count)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    return str(tmp_path / "data")


def test_the_list_has_the_papers_forty_four_cells(start):
    said = start("--list").output
    rows = [line.split() for line in said.splitlines()[1:-1]]
    listed = {(f"{model}-{data}", setting): rest for model, data, setting, *rest in rows}
    assert len(rows) == len(listed) == len(CELLS) == 44
    for setting, numbers in PRINTED.items():
        for column, number in zip(COLUMNS.split(), numbers.split(), strict=True):
            assert listed[column, setting] == [number, "-", "not", "run"]
    assert said.endswith("44 cells, 44 of the paper's 44\n")
    assert "Nothing was run: give --models or --all" in start().output


def test_other_data_have_no_published_number(start):
    said = start("--list", "--models", "resnet20", "--data", "photos,fashion_mnist").output
    assert len(said.splitlines()) == 1 + 8 + 1
    assert all(line.split()[3] == "-" for line in said.splitlines()[1:-1])


def test_training_is_as_published(paper):
    recipe = paper.cells.Recipe()
    rates = [round(paper.training.rate(recipe.learning_rate, i, 200), 8) for i in range(200)]
    assert [i for i in range(1, 200) if rates[i] != rates[i - 1]] == [60, 120, 160]
    assert sorted(set(rates)) == [0.00008, 0.0004, 0.002, 0.01]
    cell = paper.cells.Cell("vgg16", "cifar10", "fedavg+lock")
    made = paper.federated.sections(cell, recipe, 0, first=50, test_every=5, data={})
    given = {key: value for section in made.values() for key, value in section.items()}
    assert (given["comm_round"], given["first_round"], given["all_rounds"]) == (150, 50, 200)
    assert (given["worker_num"], given["batch_size"], given["epochs"]) == (3, 64, 1)
    assert (given["momentum"], given["weight_decay"]) == (0.9, 5e-4)
    lock = KeyLockConfig.from_mapping(given["keylock"])
    assert make_lock(lock).title == "keylock:paper:first"
    assert (lock.activation, lock.key_length) == ("relu", 1024)


@pytest.mark.parametrize("model", ["lenet", "resnet20", "resnet32"])
@pytest.mark.parametrize("channels", [1, 3])
def test_models_take_pictures_of_any_channels(paper, model, channels):
    net = paper.nets.build(model, channels=channels, classes=7, extra_convolution=False, seed=0)
    assert net(torch.rand(2, channels, 32, 32)).shape == (2, 7)


def test_vgg_has_one_convolution_more_with_the_lock(paper):
    plain, locked = (
        [m for m in _on_meta(paper, extra).features if isinstance(m, torch.nn.Conv2d)]
        for extra in (False, True)
    )
    assert [len(plain), len(locked)] == [13, 14]
    assert [(x.in_channels, x.out_channels) for x in locked[:3]] == [(3, 64), (64, 64), (64, 64)]


def _on_meta(paper, extra):
    with torch.device("meta"):
        return paper.nets.vgg16(3, 10, extra)


def test_a_crop_is_a_part_of_its_picture(paper):
    images = torch.arange(1, 2 * 3 * 32 * 32 + 1).view(2, 3, 32, 32)
    bordered = torch.nn.functional.pad(images, [4] * 4)
    draw, mirrored = torch.Generator().manual_seed(0), set()
    for _ in range(20):
        for index, found in enumerate(paper.data.crop_and_mirror(images, draw)):
            places = [
                (y, x, mirror)
                for y in range(9)
                for x in range(9)
                for mirror in (False, True)
                if torch.equal(
                    found.flip(2) if mirror else found,
                    bordered[index, :, y : y + 32, x : x + 32],
                )
            ]
            assert len(places) == 1
            mirrored.add(places[0][2])
    assert mirrored == {False, True}


def test_one_step_of_central_cells(start, tmp_path):
    done = start(
        *("--models", "lenet", "--settings", "central,central+lock"),
        *("--smoke", "--stand-in", "--data-dir", str(tmp_path)),
    )
    assert done.exit_code == 0, done.output
    assert "lenet-mnist-central: runs" in done.output
    assert "lenet-mnist-central+lock: runs" in done.output
    assert "2 of 2 cells run" in done.output


def test_a_finished_cell_is_not_run_again(paper, start, mnist, tmp_path, monkeypatch):
    options = ["--models", "lenet", "--settings", "central", "--data-dir", mnist]
    assert start(*options, "--rounds", "1", "--seeds", "0,1").exit_code == 0
    folder = tmp_path / "results" / "lenet-mnist-central"
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    assert sorted(path.name for path in kept) == ["seed-0.json", "seed-1.json", "settings.json"]
    found = json.loads(kept[folder / "seed-1.json"])
    assert found["published"] == 98.09
    assert len(found["accuracy"]["test"]) == 1

    def refuse(*_given):
        raise AssertionError("it is run again")

    monkeypatch.setattr(paper.central, "train", refuse)
    again = start(*options, "--rounds", "1", "--seeds", "0,1")
    assert again.exit_code == 0, again.output
    assert {path: path.read_bytes() for path in folder.iterdir()} == kept
    assert "2 seeds, 1 rounds" in again.output
    assert " ± " in (tmp_path / "results" / "table.md").read_text()
    other = start(*options, "--rounds", "2")
    assert other.exit_code == 1
    assert "was begun with rounds 1, and not 2: give another --output" in other.output


@pytest.mark.parametrize("setting", ["central", "central+lock"])
def test_an_interrupted_central_cell_goes_on(paper, mnist, tmp_path, monkeypatch, setting):
    monkeypatch.setattr(paper.central, "SECONDS", 0)
    cell = paper.cells.Cell("lenet", "mnist", setting)
    recipe = paper.cells.Recipe(rounds=4, batch_size=8, learning_rate=0.05)
    pictures, checkpoint = paper.data.load("mnist", Path(mnist)), tmp_path / "checkpoint"
    seen = []

    def interrupt(done):
        seen.append(done)
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        paper.central.train(cell, recipe, 0, pictures, checkpoint, interrupt)
    assert seen == [0, 1, 2, 3]
    assert checkpoint.stat().st_mode & 0o777 == 0o600
    went_on = []
    found = paper.central.train(cell, recipe, 0, pictures, checkpoint, went_on.append)
    assert went_on == [2, 3, 4]
    assert not checkpoint.exists()
    if setting == "central":  # a lock is another each time
        whole = paper.central.train(cell, recipe, 0, pictures, checkpoint, lambda done: None)
        assert found["accuracy"] == whole["accuracy"]


def test_data_that_are_not_there_are_named(start, tmp_path):
    done = start("--models", "resnet20", "--data-dir", str(tmp_path))
    assert done.exit_code == 1
    last = done.output.splitlines()[-1]
    assert f"CIFAR10 is not in {tmp_path}" in last
    assert "--download" in last


@pytest.mark.long
@pytest.mark.parametrize(("column", "setting"), CELLS)
def test_every_cell_runs_a_step_on_random_pictures_where_its_data_are_not_there(
    start, column, setting
):
    """Real data are looked for in the folder that PAPER_DATA names; federated cells are MPI jobs.

    Each rank of VGG-16's takes up to 5 GB of memory.
    """
    model, data = column.split("-")
    done = start(
        *("--models", model, "--data", data, "--settings", setting, "--smoke", "--stand-in"),
        *("--data-dir", os.environ.get("PAPER_DATA", "data")),
    )
    assert done.exit_code == 0, done.output
    assert f"{column}-{setting}: runs" in done.output


@pytest.mark.long
def test_an_interrupted_federated_cell_goes_on(paper, mnist, tmp_path):
    cell = paper.cells.Cell("lenet", "mnist", "fedavg+lock")
    recipe, data = paper.cells.Recipe(rounds=30), {"data_cache_dir": mnist, "stand_in": False}

    def interrupt(done):
        if done == 4:
            raise KeyboardInterrupt

    def train(progress):
        folder = tmp_path / "job"
        return paper.federated.train(cell, recipe, 0, folder, progress, test_every=1, data=data)

    with pytest.raises(KeyboardInterrupt):
        train(interrupt)
    kept = paper.federated.rounds_done(tmp_path / "job")
    assert 4 <= kept < 30
    went_on = []
    found = train(went_on.append)
    assert went_on == [kept, *range(kept + 1, 31)]
    for role in ("server", "silo-0", "silo-1", "silo-2", "own lock"):
        measured = {index for index, _ in found["accuracy"][role]}
        # it may have ended between keeping the model and testing it
        assert set(range(1, 31)) - {kept} <= measured
    log = (tmp_path / "job" / "job.log").read_text()
    assert log.count("goes on from keylock_vault/silo-") == 3
