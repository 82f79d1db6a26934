"""Whether a lock took part in a round: one that did not protects nothing, and stops the silo."""

import logging

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedml_keylock.builtin import keylock
from fedml_keylock.errors import LockError
from fedml_keylock.locks import KeyLockConfig, lock_model, private_state_dict, unlock_model
from fedml_keylock.locks.paper.gradients import Watch


class Net(nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 6, 3), nn.GELU()),
            *(nn.Flatten(), nn.Linear(96, 3)),
        )


class Skips(Net):
    """It has a layer that it does not run, and cannot be traced, which would show that."""

    def forward(self, x):
        y = self[2](self[1](self[0](x if x.mean() < 100 else -x)))
        return self[6](y[:, :, :4, :6].flatten(1))


def watched(make=Net):
    model = make()
    lock_model(model, KeyLockConfig(lock="paper", layers="all", key_length=16))
    return model, Watch(model)


def step(model, parameters=None, rate=0.1):
    optimizer = torch.optim.SGD(parameters or model.parameters(), rate)
    loss = cross_entropy(model(torch.rand(4, 1, 8, 8)), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    optimizer.step()


def test_a_round_that_trains_everything_is_one():
    model, watch = watched()
    private = private_state_dict(model)
    public = {name: value.clone() for name, value in model.state_dict().items()}
    step(model)
    assert watch.finish(0)
    moved = private_state_dict(model)
    for name in ("1.keylock.bias_gamma", "3.keylock.bias_gamma", "3.keylock.weight_gamma"):
        assert not torch.equal(moved[name], private[name]), name
    assert not torch.equal(model.state_dict()["0.weight"], public["0.weight"])


def test_a_lock_that_the_optimizer_does_not_hold_is_noticed():
    model, watch = watched()
    rest = [p for name, p in model.named_parameters() if not name.startswith("1.keylock")]
    step(model, rest, 5.0)
    with pytest.raises(LockError, match=r"the lock on 1 was not trained in round 3"):
        watch.finish(3)


def test_a_lock_on_what_does_not_run_is_noticed():
    model, watch = watched(Skips)
    step(model)
    with pytest.raises(LockError, match=r"the lock on 3 got no gradient in round 2: .*keylock\.la"):
        watch.finish(2)


def test_a_round_without_data_is_none():
    _, watch = watched()
    assert not watch.finish(0)


def test_gradients_alone_are_a_round_that_is_told_of(caplog):
    """Of a trainer that sends gradients."""
    model, watch = watched()
    cross_entropy(model(torch.rand(4, 1, 8, 8)), torch.tensor([0, 1, 2, 0])).backward()
    with caplog.at_level(logging.WARNING):
        assert watch.finish(1)
    assert "round 1 took no step, neither of the model nor of its lock" in caplog.text


def test_nothing_is_left_on_the_model():
    model, watch = watched()
    step(model)
    watch.finish(0)
    assert not any(parameter._backward_hooks for parameter in model.parameters())


@pytest.mark.parametrize("again", [True, False])
def test_a_model_that_the_jobs_own_code_unlocked_or_locked_anew_is_not_sent(again, tmp_path):
    defense, model = keylock({"lock": "paper", "vault": tmp_path / "vault"}), Net()
    defense.protect(model, silo=0, agreement=defense.describe(model))
    defense.begin_round(model, round_index=0)
    step(model)
    unlock_model(model)
    if again:
        lock_model(model, defense.config)
    with pytest.raises(LockError, match="unlocked or locked anew before the end of round 0"):
        defense.end_round(model, round_index=0)
