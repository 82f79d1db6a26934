"""A secret that somebody gave all silos in a file."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from fedml_keylock.locks.rotated.state import state_lock
from nets import lenet

from fedml_keylock.builtin import keylock
from fedml_keylock.errors import ConfigError, VaultError
from fedml_keylock.locks import KeyLockConfig, Vault, is_locked, lock_model, private_state_dict
from fedml_keylock.locks.rotated.turns import OPEN
from fedml_keylock.types import JobSecrets


def made():
    torch.manual_seed(0)
    return lenet()


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "group"
    path.touch(mode=0o600)
    path.write_bytes(bytes(range(32)))
    return path


@pytest.fixture(params=[{}, {"lock": "rotated"}])
def settings(request, secret, tmp_path):
    return {**request.param, "group_key": str(secret), "vault": tmp_path / "vault"}


def silo_of(settings, index=0):
    """As in a job, up to its first round."""
    defense, model = keylock(settings), made()
    defense.protect(model, silo=index, agreement=defense.describe(made()))
    defense.receive(model, made().state_dict(), round_index=OPEN)
    defense.begin_round(model, round_index=0)
    return defense, model


def test_all_silos_rotate_alike_and_others_do_not(settings, secret):
    one, two = (silo_of(settings, index)[1].state_dict() for index in (0, 1))
    assert all(torch.equal(one[name], tensor) for name, tensor in two.items())
    secret.write_bytes(bytes(range(1, 33)))
    other = silo_of(settings, 2)[1].state_dict()
    assert not any(torch.allclose(other[n], t, atol=1e-3) for n, t in one.items())


def test_a_model_that_is_locked_by_hand_has_it_too(secret):
    models = [made(), made()]
    for model in models:
        lock_model(model, KeyLockConfig(group_key=secret))
    one, two = (model.state_dict() for model in models)
    assert all(torch.equal(one[name], tensor) for name, tensor in two.items())
    assert not torch.allclose(one["0.weight"], made().state_dict()["0.weight"], atol=1e-3)


def test_the_server_and_an_audit_need_no_secret(settings, secret):
    one = keylock(settings).describe(lenet())
    secret.unlink()
    defense = keylock(settings)
    assert defense.title == "keylock:rotated:group"
    assert not defense.needs_secret
    assert keylock({}).needs_secret
    assert defense.describe(lenet()).mark == one.mark
    assert defense.surrogate(lenet()).names == ()
    again = keylock(one.settings)  # as an audit reads a capture
    assert again.title == defense.title
    assert str(settings["group_key"]) not in str(one.settings)
    own = keylock({**one.settings, "group_key": None})
    assert own.describe(lenet()).mark != one.mark  # silos that agree by themselves are refused


def test_a_lock_on_layers_is_another_job(settings):
    layers = keylock({"lock": "paper"})
    assert layers.describe(lenet()).mark != keylock(settings).describe(lenet()).mark


@pytest.mark.parametrize("length", [0, 31, 5000])
def test_a_secret_that_is_too_short_or_too_long(settings, secret, length):
    secret.write_bytes(b"x" * length)
    with pytest.raises(ConfigError, match="must hold 32 to 4096 random bytes: openssl rand"):
        silo_of(settings)
    model = lenet()
    with pytest.raises(ConfigError, match="must hold 32 to 4096 random bytes"):
        lock_model(model, KeyLockConfig(group_key=secret))
    assert not is_locked(model)


def test_a_secret_that_others_may_read_or_that_is_not_there(settings, secret):
    secret.chmod(0o644)
    with pytest.raises(VaultError, match=r"keylock\.group_key:"):
        silo_of(settings)
    secret.unlink()
    with pytest.raises(VaultError, match=r"keylock\.group_key:"):
        silo_of(settings)


def test_a_vault_of_another_lock_is_refused_and_not_written_over(settings):
    vault = Vault(settings["vault"], 0, keylock(settings).describe(lenet()).layout)
    layers = lenet()
    lock_model(layers, KeyLockConfig(lock="paper"))
    vault.save(private_state_dict(layers), round_index=1)
    before = vault.path.read_bytes()
    with pytest.raises(VaultError, match="that of another lock"):
        silo_of(settings)
    assert vault.path.read_bytes() == before


def test_the_key_is_of_the_file_and_of_what_was_agreed_on_and_of_the_job(secret):
    """Who has one of them, such as who stood between the silos, does not have the key."""
    keys = set()
    for of_file, agreed, nonce in product((b"f", b"g"), (None, b"a", b"b"), (b"", b"n")):
        secret.write_bytes(of_file * 32)
        defense, model = keylock({"group_key": str(secret)}), made()
        defense.protect(model, silo=None, agreement=defense.describe(model))
        if agreed:
            defense.share(JobSecrets(agreed * 32))
        defense.begin_job(nonce)
        defense.receive(model, made().state_dict(), round_index=OPEN)
        keys.add(state_lock(model).key.root)
    assert len(keys) == 12
