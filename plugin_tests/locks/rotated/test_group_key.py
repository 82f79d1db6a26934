"""A secret that somebody gave all silos in a file."""

from __future__ import annotations

import pytest
import torch
from nets import lenet

from fedml_keylock.builtin import keylock
from fedml_keylock.errors import ConfigError, VaultError
from fedml_keylock.locks import KeyLockConfig, is_locked, lock_model, private_state_dict


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "group"
    path.touch(mode=0o600)
    path.write_bytes(bytes(range(32)))
    return path


def locked(secret):
    torch.manual_seed(0)
    model = lenet()
    lock_model(model, KeyLockConfig(lock="rotated", group_key=secret))
    return model


def test_models_that_are_locked_by_hand_are_rotated_alike(secret):
    one, two = (locked(secret) for _ in range(2))
    keys = [private_state_dict(model)["rotated.key"] for model in (one, two)]
    assert torch.equal(*keys)
    secret.write_bytes(bytes(range(1, 33)))
    other, state = locked(secret), one.state_dict()
    sent = [model.keylock.rotate(state)["0.weight"] for model in (one, two, other)]
    assert torch.equal(sent[0], sent[1])
    assert not torch.allclose(sent[0], sent[2], atol=1e-3)


@pytest.mark.parametrize(("lock", "title"), [("sealed", ""), ("rotated", ":group")])
def test_the_server_and_an_audit_need_no_secret(secret, tmp_path, lock, title):
    settings = {"lock": lock, "group_key": str(secret), "vault": tmp_path / "vault"}
    one = keylock(settings).describe(lenet())
    secret.unlink()
    defense = keylock(settings)
    assert defense.title == f"keylock:{lock}{title}"
    assert defense.describe(lenet()).mark == one.mark
    assert defense.attacker_model(lenet()).names == ()
    again = keylock(one.settings)  # as an audit reads a capture
    assert again.title == defense.title
    assert str(secret) not in str(one.settings)
    own = keylock({**one.settings, "group_key": None})
    assert own.describe(lenet()).mark != one.mark  # silos that agree by themselves are refused


@pytest.mark.parametrize("length", [0, 31, 5000])
def test_a_secret_that_is_too_short_or_too_long(secret, length):
    secret.write_bytes(b"x" * length)
    model = lenet()
    with pytest.raises(ConfigError, match="must hold 32 to 4096 random bytes: openssl rand"):
        lock_model(model, KeyLockConfig(lock="rotated", group_key=secret))
    assert not is_locked(model)


def test_a_secret_that_others_may_read_or_that_is_not_there(secret):
    secret.chmod(0o644)
    with pytest.raises(VaultError, match=r"keylock\.group_key:"):
        locked(secret)
    secret.unlink()
    with pytest.raises(VaultError, match=r"keylock\.group_key:"):
        locked(secret)
