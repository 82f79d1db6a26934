"""FedML's own model hub: what can be locked is, and what gives its input away is refused."""

import pytest
import torch
from trial import exports, locks, trains
from zoo import fedml_hub, fedml_refused

from fedml_keylock import KeyLockConfig, lock_model
from fedml_keylock.errors import LockError

HUB = fedml_hub()
REFUSED = fedml_refused()
LARGER = ("resnet56", "vgg16")
"""Those of which there is a smaller one beside them, of the same parts."""


@pytest.mark.parametrize(
    "model",
    [pytest.param(m, id=m.name, marks=[pytest.mark.long] if m.name in LARGER else []) for m in HUB],
)
def test_models_of_the_hub_lock_train_and_export(model):
    torch.manual_seed(0)
    net = model.make()
    locks(net, KeyLockConfig(lock="paper", layers="all"))
    trains(net, model.inputs())
    assert exports(net, model.inputs()) <= 1e-5


@pytest.mark.parametrize("layers", ["first", "all", ["*"]])
@pytest.mark.parametrize("model", REFUSED, ids=lambda model: model.name)
def test_models_whose_first_layer_tells_the_input_are_refused(model, layers):
    with pytest.raises(LockError, match=r"first layer is (linear|an embedding): .* cannot be prot"):
        lock_model(model.make(), KeyLockConfig(lock="paper", layers=layers))
