"""What locks and vaults refuse that no job of ours would do."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fedml_keylock.disk import append_private, remove_leftovers
from fedml_keylock.errors import ConfigError, LockError, VaultError
from fedml_keylock.locks import KeyLockConfig, lock_model, make_lock
from fedml_keylock.locks.sealed.sealing import TRAILER
from fedml_keylock.locks.vault.file import Stored


def test_a_sealed_checkpoint_needs_a_record():
    model, config = nn.Linear(2, 2), KeyLockConfig()
    lock_model(model, config)
    words = {TRAILER: torch.zeros(1, dtype=torch.int32)}
    with pytest.raises(ConfigError, match=r"^a: the vault holds nothing that opens it"):
        make_lock(config).load_public(model, words, round_index=None, source=Path("a"))


def test_a_locked_layer_that_has_lost_its_lock_does_not_compute():
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6))
    lock_model(model, KeyLockConfig(lock="paper"))
    del model[1].keylock
    with pytest.raises(LockError, match="a locked BatchNorm2d has lost its lock"):
        model(torch.rand(2, 1, 5, 5))


def test_what_cannot_be_written_or_removed_is_named(tmp_path):
    (tmp_path / "silo-2.log").mkdir()
    with pytest.raises(VaultError, match=r"silo-2\.log: cannot be written: "):
        append_private(tmp_path / "silo-2.log", "round 0")
    (tmp_path / ".silo-2.x.tmp").mkdir()
    with pytest.raises(VaultError, match=r"\.silo-2\.x\.tmp: cannot be removed: "):
        remove_leftovers(tmp_path, "silo-2.*")


@pytest.mark.parametrize("layout", ["", "a/b", "a" * 65, "\u00e9"])
def test_a_layout_is_a_short_word(layout):
    with pytest.raises(VaultError, match="it names no layout"):
        _ = Stored(Path("a"), {"layout": layout}, b"").layout


def test_what_no_lock_at_the_wire_is_made_for_is_refused():
    config = KeyLockConfig()
    with pytest.raises(LockError, match=r"a key is of lock: paper"):
        lock_model(nn.Linear(2, 2), config, key=torch.ones(3))
    with pytest.raises(LockError, match="needs a model with values: take it off meta"):
        lock_model(nn.Linear(2, 2, device="meta"), config)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 0.0])
def test_a_key_has_finite_numbers_that_are_not_all_zero(number):
    model, config = nn.Sequential(nn.Conv2d(1, 6, 3)), KeyLockConfig(lock="paper", key_length=4)
    with pytest.raises(LockError, match="the key"):
        lock_model(model, config, key=torch.full((4,), number))
    assert not hasattr(model[0], "keylock")


@pytest.mark.parametrize(
    ("settings", "enter", "said"),
    [
        ({"checkpoint": "file/a.safetensors"}, "enter_server", r"^keylock\.checkpoint: .*file/a"),
        ({"save_model": "file/models"}, "enter_silo", r"^keylock\.save_model: .*file/models"),
        ({"vault": "vault"}, "enter_silo", r"^keylock\.vault: .*silo-0\.log: .* it is a folder"),
    ],
)
def test_what_could_not_be_written_is_said_before_a_job_trains(
    settings, enter, said, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("vault").mkdir(mode=0o700)
    Path("vault/silo-0.log").mkdir()
    model, lock = nn.Linear(2, 2), make_lock(KeyLockConfig(**settings))
    with pytest.raises(ConfigError, match=said):
        lock.enter_server() if enter == "enter_server" else lock.enter_silo(model, silo=0)
