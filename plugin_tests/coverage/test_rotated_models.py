"""The default lock on every kind of model: the state is rotated, comes back, and nothing else."""

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

from fedml_keylock import check_model, export_model, is_locked, lock_model, unlock_model
from fedml_keylock.locks import KeyLockConfig

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
def test_the_state_is_rotated_and_comes_back(model):
    torch.manual_seed(0)
    net = model.make().eval()
    plain = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert not check_model(net, KeyLockConfig()).issues
    lock_model(net)
    sent = net.state_dict()
    assert {n: (t.shape, t.dtype) for n, t in sent.items()} == {
        n: (t.shape, t.dtype) for n, t in plain.items()
    }
    moved = [
        float((sent[name] - tensor).norm() / tensor.norm().clamp(min=1e-3))
        for name, tensor in plain.items()
        if tensor.is_floating_point() and tensor.numel() > 4 and tensor.any()
    ]
    assert min(moved) > 0.1
    # the weights themselves are as they were, and a state that is loaded is rotated back
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        assert name not in plain or torch.equal(tensor, plain[name])
    net.load_state_dict(sent)
    exported = export_model(net)
    assert not is_locked(exported)
    for name, tensor in exported.state_dict().items():
        torch.testing.assert_close(tensor, plain[name], atol=1e-5, rtol=1e-5)
    unlock_model(net)
    assert all(torch.equal(net.state_dict()[n], t) for n, t in exported.state_dict().items())
