"""One table of locks, and what users call: each call finds the lock on the model by itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedml_keylock import locks
from fedml_keylock.errors import LockError
from fedml_keylock.locks import KeyLockConfig, Lock, lock_model, make_lock
from fedml_keylock.locks.model import LOCKS


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def test_every_lock_of_the_settings_has_one_row():
    names = KeyLockConfig.model_fields["lock"].annotation.__args__
    assert set(LOCKS) == set(names)
    for name, kind in LOCKS.items():
        made = make_lock(KeyLockConfig(lock=name))
        assert type(made) is kind
        assert isinstance(made, Lock)
        assert made.title.startswith(f"keylock:{name}")
    assert type(make_lock()) is LOCKS["rotated"]


@pytest.mark.parametrize(
    ("lock", "title"),
    [
        ({}, "keylock:rotated"),
        ({"group_key": "group"}, "keylock:rotated:group"),
        ({"mask": False}, "keylock:rotated:unmasked"),
        ({"robust_aggregation": "krum"}, "keylock:rotated:unmasked"),
        ({"group_key": "group", "mask": False}, "keylock:rotated:group:unmasked"),
        ({"lock": "paper"}, "keylock:paper:first"),
        ({"lock": "paper", "layers": "all", "chained": True}, "keylock:paper:all:chained"),
        ({"lock": "paper", "layers": ["conv*", "fc"]}, "keylock:paper:conv*,fc"),
    ],
)
def test_reports_name_a_lock_and_its_settings(lock, title):
    assert make_lock(KeyLockConfig(**lock)).title == title


CALLS = {
    "unlock_model": lambda model: locks.unlock_model(model),
    "lock_info": lambda model: locks.lock_info(model),
    "private_state_dict": lambda model: locks.private_state_dict(model),
    "load_private_state_dict": lambda model: locks.load_private_state_dict(model, {}),
    "secret_variables": lambda model: locks.secret_variables(model),
    "export_model": lambda model: locks.export_model(model),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_model_without_a_lock_is_refused(call):
    with pytest.raises(LockError, match=r"^the model is not locked$"):
        CALLS[call](net())


@pytest.mark.parametrize("first", LOCKS)
@pytest.mark.parametrize("second", LOCKS)
def test_no_model_has_two_locks(first, second):
    model = net()
    lock_model(model, KeyLockConfig(lock=first))
    before = locks.private_state_dict(model)
    (issue,) = locks.check_model(model, KeyLockConfig(lock=second)).issues
    assert "locked already; unlock_model" in str(issue)
    with pytest.raises(LockError, match="locked already; unlock_model"):
        lock_model(model, KeyLockConfig(lock=second))
    after = locks.private_state_dict(model)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("name", LOCKS)
def test_the_public_calls_go_to_the_lock_on_the_model(name):
    model = net()
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    config = KeyLockConfig(lock=name)
    info = locks.lock_model(model, config)
    assert locks.is_locked(model)
    assert [kind.is_on(model) for kind in LOCKS.values()] == [key == name for key in LOCKS]
    assert locks.lock_info(model) == info
    private, other = locks.private_state_dict(model), net()
    locks.lock_model(other, config)
    locks.load_private_state_dict(other, private)
    assert all(torch.equal(t, private[n]) for n, t in locks.private_state_dict(other).items())
    assert locks.secret_variables(model)
    assert not locks.is_locked(locks.export_model(model))
    locks.unlock_model(model)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
