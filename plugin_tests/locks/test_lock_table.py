"""One table of locks, and what users call: each call finds the lock on the model by itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedml_keylock import locks
from fedml_keylock.errors import ConfigError, LockError
from fedml_keylock.locks import KeyLockConfig, Lock, lock_model, make_lock
from fedml_keylock.locks.config import LockName
from fedml_keylock.locks.model import LOCKS


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def config_of(name, **more):
    """The settings of a lock by the name that the table has for it."""
    locks = name.split("+")
    return KeyLockConfig(lock=locks if len(locks) > 1 else name, **more)


def test_every_lock_of_the_settings_has_one_row():
    names = {name for name in LOCKS if "+" not in name}
    assert names == set(LockName.__args__)
    for name, kind in LOCKS.items():
        made = make_lock(config_of(name))
        assert type(made) is kind
        assert isinstance(made, Lock)
        assert made.title.startswith(f"keylock:{name.partition('+')[0]}")
    assert type(make_lock()) is LOCKS["sealed"]


@pytest.mark.parametrize("locks", [["sealed", "paper"], ["rotated", "sealed"], []])
def test_locks_that_have_no_row_are_no_settings(locks):
    with pytest.raises(ConfigError, match="do not go together"):
        KeyLockConfig(lock=locks)


@pytest.mark.parametrize(
    ("lock", "title"),
    [
        ({}, "keylock:sealed"),
        ({"group_key": "group", "colluders": 1}, "keylock:sealed"),
        ({"lock": "rotated"}, "keylock:rotated"),
        ({"lock": "rotated", "group_key": "group"}, "keylock:rotated:group"),
        ({"lock": "rotated", "robust_aggregation": "krum"}, "keylock:rotated"),
        ({"lock": "paper"}, "keylock:paper:first"),
        ({"lock": "paper", "layers": "all", "chained": True}, "keylock:paper:all:chained"),
        ({"lock": "paper", "layers": ["conv*", "fc"]}, "keylock:paper:conv*,fc"),
        ({"lock": ["paper", "sealed"], "layers": "all"}, "keylock:paper:all+sealed"),
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
    lock_model(model, config_of(first))
    before = locks.private_state_dict(model)
    (issue,) = locks.check_model(model, config_of(second)).issues
    assert "locked already; unlock_model" in str(issue)
    with pytest.raises(LockError, match="locked already; unlock_model"):
        lock_model(model, config_of(second))
    after = locks.private_state_dict(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("name", LOCKS)
def test_the_public_calls_go_to_the_lock_on_the_model(name):
    model = net()
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    info = locks.lock_model(model, config_of(name))
    assert locks.is_locked(model)
    # over paper, sealed has nothing on a model
    own = {key for key in LOCKS if key.split("+")[0] == name.split("+")[0]}
    assert {key for key, kind in LOCKS.items() if kind.is_on(model)} == own
    assert locks.lock_info(model) == info
    if name == "sealed":  # of a round, which there is once something was sealed
        assert locks.private_state_dict(model) == {}
        model.keylock.seal(state)
    private, other = locks.private_state_dict(model), net()
    locks.lock_model(other, config_of(name))
    locks.load_private_state_dict(other, private)
    assert all(torch.equal(t, private[n]) for n, t in locks.private_state_dict(other).items())
    assert locks.secret_variables(model)
    assert not locks.is_locked(locks.export_model(model))
    locks.unlock_model(model)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
