"""FedML's own model hub: what can be locked is, and what gives its input away is refused."""

import pytest
import torch
from trial import exports, locks, trains
from zoo import fedml_hub, fedml_refused

from fedml_keylock import KeyLockConfig, lock_model
from fedml_keylock.errors import LockError

HUB = fedml_hub()
REFUSED = fedml_refused()


@pytest.mark.parametrize(
    "module", [pytest.param("affine", marks=pytest.mark.long), "mixing", "weights"]
)
@pytest.mark.parametrize("model", HUB, ids=lambda model: model.name)
def test_models_of_the_hub_lock_train_and_export(model, module):
    torch.manual_seed(0)
    net = model.make()
    locks(net, KeyLockConfig(targets="all", module=module))
    trains(net, model.inputs())
    assert exports(net, model.inputs()) <= 1e-5


@pytest.mark.parametrize("targets", ["first", "all", ["*"]])
@pytest.mark.parametrize("model", REFUSED, ids=lambda model: model.name)
def test_models_whose_first_layer_tells_the_input_are_refused(model, targets):
    with pytest.raises(LockError, match=r"first layer is (linear|an embedding): .* cannot be prot"):
        lock_model(model.make(), KeyLockConfig(module="affine", targets=targets))
