"""Models that opacus watches have no lock on layers: the sealed lock leaves them as they are."""

import pytest
import torch
from torch import nn

from fedml_keylock.errors import LockError
from fedml_keylock.locks import KeyLockConfig, check_model, lock_model

PAPER = KeyLockConfig(lock="paper")
LINE = (
    "cannot lock the model: opacus computes gradients of each example for this model, and knows "
    "none of a lock's own parameters: use lock: sealed, which leaves the model as it is, or no "
    "opacus"
)


def net():
    layers = nn.Conv2d(1, 4, 5, 2), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(576, 3)
    return nn.Sequential(*layers)


def refused(model):
    before = list(model.state_dict())
    assert str(check_model(model, PAPER)) == LINE
    with pytest.raises(LockError) as caught:
        lock_model(model, PAPER)
    assert str(caught.value) == LINE
    assert list(model.state_dict()) == before


def test_what_opacus_leaves_on_parameters_is_refused():
    model = net()
    model[0].weight._forward_counter = 0
    refused(model)


@pytest.fixture
def opacus():
    return pytest.importorskip("opacus", reason="pip install opacus")


@pytest.mark.parametrize("mode", ["hooks", "functorch", "ew", "ghost"])
def test_opacus_own_wrappers_are_refused(mode, opacus):
    from opacus.grad_sample.utils import wrap_model

    refused(wrap_model(net(), grad_sample_mode=mode))


@pytest.mark.parametrize("lock", ["sealed", "rotated"])
def test_under_locks_at_the_wire_opacus_works(lock, opacus):
    model = opacus.GradSampleModule(net())
    lock_model(model, KeyLockConfig(lock=lock))
    model(torch.rand(2, 1, 28, 28)).sum().backward()
    assert all(parameter.grad_sample.shape[0] == 2 for parameter in model.parameters())


def test_what_opacus_has_let_go_of_is_locked(opacus):
    watched = opacus.GradSampleModule(net())
    lock_model(watched.to_standard_module(), PAPER)
