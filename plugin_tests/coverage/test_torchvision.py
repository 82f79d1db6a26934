"""Every classifier of torchvision: its shape on meta, and one of each family with real numbers."""

from copy import deepcopy

import pytest
import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision import models
from trial import copy_runs_its_own_lock, double_backward, exports, locks, public_face, trains
from zoo import (
    FAMILIES,
    SMALL_ONES,
    Model,
    family_of,
    loss_of,
    no_start,
    prepared,
    small_model,
    torchvision_model,
    torchvision_names,
)

from fedml_keylock import KeyLockConfig, check_model, lock_model, unlock_model
from fedml_keylock.locks.paper.module import locks as locks_of

ALL = KeyLockConfig(lock="paper", layers="all")
CHAINED = KeyLockConfig(lock="paper", layers="all", chained=True)
SMALLEST = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "vgg11",
    "vit_b_32",
)


def test_every_family_is_tried_with_real_numbers():
    assert {family_of(name) for name in SMALLEST} == set(FAMILIES) == set(SMALL_ONES)
    assert len(torchvision_names()) >= 80


# one of each family always; all eighty with the longer checks
EVERY = [
    n if n in SMALLEST else pytest.param(n, marks=pytest.mark.long) for n in torchvision_names()
]


@pytest.mark.parametrize("name", EVERY)
def test_every_classifier_is_locked_on_meta(name):
    model = torchvision_model(name)
    with no_start():
        net = model.make().to("meta")
    checked = check_model(net, ALL)
    # every convolution is locked, but gates and heads, and for those the reason is given
    for layer in checked.layers:
        if isinstance(net.get_submodule(layer.layer), torch.nn.Conv2d) and not layer.locked:
            assert layer.how.startswith(("a gate:", "the head:")), layer
    locks(net, ALL)
    net.train()
    loss_of(net(torch.empty(2, *model.shape, device="meta"))).backward()
    for holder, _, lock in locks_of(net):
        for own, parameter in lock.named_parameters():
            assert parameter.grad is not None, f"{holder}.{own} is in no gradient"


# a small member of each family always, with the parts of the others; the longer checks have a
# published one too, and the table has all
TRIED = [small_model(family) for family in FAMILIES]
PUBLISHED = [
    pytest.param(torchvision_model(name), id=name, marks=pytest.mark.long) for name in SMALLEST
]


@pytest.fixture(scope="module", params=[*(pytest.param(m, id=m.name) for m in TRIED), *PUBLISHED])
def family(request):
    torch.manual_seed(0)
    return request.param, request.param.make()


@pytest.mark.parametrize("config", [ALL, CHAINED], ids=["all", "chained"])
class TestFamilies:
    def test_it_locks_trains_copies_and_exports(self, family, config):
        model, start = family
        net, x = deepcopy(start), model.inputs()
        locks(net, config)
        trains(net, x)
        assert exports(net, x) <= 1e-5
        copy_runs_its_own_lock(net, x)

    def test_unlocking_gives_back_bits(self, family, config):
        model, start = family
        net, x = deepcopy(start).eval(), model.inputs()
        with torch.no_grad():
            before = net(x)
            lock_model(net, config)
            assert not torch.allclose(net(x), before, rtol=1e-2)
            unlock_model(net)
            assert torch.equal(net(x), before)
        assert public_face(net) == public_face(start)
        for name, tensor in start.state_dict().items():
            assert torch.equal(net.state_dict()[name], tensor), name


def test_functional_call_and_replicas_run_the_lock(family):
    model, start = family
    net, x = deepcopy(start).eval(), model.inputs()
    lock_model(net, ALL)
    with torch.no_grad():
        expected = net(x)
        everything = {**dict(net.named_parameters()), **dict(net.named_buffers())}
        assert torch.equal(functional_call(net, everything, (x,)), expected)
        other = {n: p + 0.1 for n, p in net.named_parameters() if ".keylock." in n}
        assert not torch.allclose(functional_call(net, other, (x,)), expected, rtol=1e-3)
        assert torch.equal(net(x), expected)


def mobilenet_v2():
    return prepared(models.MobileNetV2(10, width_mult=0.25, dropout=0.0))


# hardsigmoid and fused attention have no second derivative in torch, locked or not
@pytest.mark.parametrize(
    "model",
    [
        small_model("ResNet, ResNeXt, Wide ResNet"),
        Model("small MobileNet, v2", mobilenet_v2, (3, 64, 64)),
        small_model("ViT"),
        small_model("SqueezeNet"),
    ],
    ids=lambda model: model.name,
)
def test_a_gradient_can_be_differentiated_again(model):
    torch.manual_seed(0)
    net = model.make()
    lock_model(net, ALL)
    with sdpa_kernel(SDPBackend.MATH):
        slope = double_backward(net, model.inputs(3))
    assert slope.isfinite().all()
    assert slope.abs().max() > 0
