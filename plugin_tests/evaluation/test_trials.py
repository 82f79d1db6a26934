"""What an attack found is written whole or not at all, for its owner's eyes only."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialized

from fedml_keylock.errors import AttackError
from fedml_keylock.evaluation import trials
from fedml_keylock.evaluation.trials import save_reconstruction
from fedml_keylock.types import ClientUpdate, Reconstruction

NAME = "dlg-oblivious.safetensors"


def save(folder, value=1.0):
    made = Reconstruction(
        images=torch.full((1, 2, 1, 4, 4), value),
        labels=torch.zeros(1, 2, dtype=torch.long),
        cost=torch.zeros(1),
        history=torch.zeros(3, 1),
        diverged=torch.zeros(1),
        attack="dlg",
        knowledge="oblivious",
    )
    return save_reconstruction(folder, made, [ClientUpdate({}, {}, 0.1, silo=2, round=5)])


def test_it_says_where_the_pictures_come_from(tmp_path):
    path = save(tmp_path / "leakage")
    assert path == tmp_path / "leakage" / NAME
    assert load_file(path)["images"].shape == (1, 2, 1, 4, 4)
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["updates"]) == [{"round": 5, "silo": 2}]


def test_it_is_its_owners_only(tmp_path, monkeypatch):
    def plainly(tensors, part, metadata):  # as older releases of safetensors write
        part.write_bytes(serialized(tensors, metadata))

    monkeypatch.setattr(trials, "save_file", plainly)
    path = tmp_path / NAME
    path.touch()
    path.chmod(0o666)
    before = os.umask(0)
    try:
        save(tmp_path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600


def test_one_that_was_not_finished_leaves_the_old_one_and_nothing_beside_it(tmp_path, monkeypatch):
    path = save(tmp_path, 1.0)

    def full(_tensors, part, _metadata):
        part.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(trials, "save_file", full)
    with pytest.raises(AttackError, match=f"{NAME}: cannot be written: disk full"):
        save(tmp_path, 2.0)
    assert torch.equal(load_file(path)["images"], torch.ones(1, 2, 1, 4, 4))
    assert [one.name for one in tmp_path.iterdir()] == [NAME]


def test_a_folder_that_is_a_file_is_one_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AttackError, match="cannot be written") as error:
        save(tmp_path / "file")
    assert "\n" not in str(error.value)
