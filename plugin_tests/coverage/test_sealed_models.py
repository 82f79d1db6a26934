"""The default lock on every kind of model: the state is sealed, is opened, and nothing else."""

from copy import deepcopy

import pytest
import torch
from zoo import (
    FAMILIES,
    family_of,
    fedml_hub,
    fedml_refused,
    small_model,
    torchvision_model,
    torchvision_names,
)

from fedml_keylock import check_model, is_locked, lock_model, unlock_model
from fedml_keylock.locks import KeyLockConfig
from fedml_keylock.locks.model import make_lock

SMALLEST = {
    "DenseNet": "densenet121",
    "EfficientNet": "efficientnet_b0",
    "MaxViT": "maxvit_t",
    "RegNet": "regnet_y_400mf",
    "ResNet, ResNeXt, Wide ResNet": "resnet18",
    "Swin": "swin_t",
    "ViT": "vit_b_16",
}
"""Of the families whose first name by the alphabet is not a small one; vgg11 and alexnet are."""


def of_torchvision():
    first = {}
    for name in torchvision_names():
        first.setdefault(family_of(name), name)
    return [torchvision_model((first | SMALLEST)[family]) for family in FAMILIES]


MODELS = [
    *(small_model(family) for family in FAMILIES),
    *(*fedml_hub(), *fedml_refused(), *of_torchvision()),
]
"""With those that no lock on a layer can protect."""
QUICK = ("small", "cnn_web", "resnet20", "mobilenet", "lr", "rnn (shakespeare)", "rnn (fed_s")
LARGE = ("small GoogLeNet", "small ResNet", "mobilenet_v")
"""What is not quick, or large, has millions of parameters more, and takes seconds to minutes."""


def is_quick(name):
    return name.startswith(QUICK) and not name.startswith(LARGE)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(m, id=m.name, marks=[] if is_quick(m.name) else pytest.mark.long)
        for m in MODELS
    ],
)
def test_a_state_is_sealed_and_opened(model):
    """A third of the tensors is frozen, and those come back bit for bit."""
    torch.manual_seed(0)
    net = model.make().eval()
    plain = deepcopy(net.state_dict())  # with the versions that some modules ask for
    assert not check_model(net, KeyLockConfig()).issues
    lock_model(net)
    assert all(torch.equal(net.state_dict()[n], t) for n, t in plain.items())
    unlock_model(net)
    assert not is_locked(net)
    frozen = set(sorted(plain)[::3])
    trained = {
        name: tensor + 0.01 * (float(tensor.abs().max()) or 1.0) * torch.randn_like(tensor)
        if name not in frozen and tensor.is_floating_point()
        else tensor
        for name, tensor in plain.items()
    }
    messages, opened = make_lock(KeyLockConfig()).rehearse(plain, [(1, trained), (3, trained)])
    assert {t.dtype for message in messages for t in message.values()} == {torch.int32}
    assert opened.keys() == plain.keys()
    for name, tensor in opened.items():
        assert (tensor.shape, tensor.dtype) == (plain[name].shape, plain[name].dtype)
        if name in frozen:
            assert torch.equal(tensor, plain[name])
        torch.testing.assert_close(tensor, trained[name], atol=1e-6, rtol=1e-6)
    net.load_state_dict(opened)
