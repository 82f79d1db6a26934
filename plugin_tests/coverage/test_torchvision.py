"""Every classifier of torchvision: its shape on meta, and one of each family with real numbers."""

import importlib
from copy import deepcopy

import pytest
import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from trial import copy_runs_its_own_lock, double_backward, exports, locks, public_face, trains
from zoo import FAMILIES, family_of, loss_of, no_start, torchvision_model, torchvision_names

from fedml_keylock import KeyLockConfig, check_model, lock_model, unlock_model
from fedml_keylock.locks.paper.module import locks as locks_of

CONFIGS = {
    "affine": KeyLockConfig(module="affine", targets="all"),
    "chained": KeyLockConfig(module="affine", targets="all", chained=True),
    "mixing": KeyLockConfig(module="mixing", targets="all"),
}
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


CHAINS = ("resnet18", "vgg11", "densenet121")


def test_every_family_is_tried_with_real_numbers():
    assert {family_of(name) for name in SMALLEST} == set(FAMILIES)
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
    checked = check_model(net, CONFIGS["affine"])
    # every convolution is locked, but gates and heads, and for those the reason is given
    for layer in checked.layers:
        if isinstance(net.get_submodule(layer.layer), torch.nn.Conv2d) and not layer.locked:
            assert layer.how.startswith(("a gate:", "the head:")), layer
    locks(net, CONFIGS["affine"])
    net.train()
    loss_of(net(torch.empty(2, *model.shape, device="meta"))).backward()
    for holder, _, lock in locks_of(net):
        for own, parameter in lock.named_parameters():
            assert parameter.grad is not None, f"{holder}.{own} is in no gradient"


# MaxViT takes images of 224 only, and half a minute: the table and the longer checks have it
TRIED = [
    pytest.param(name, marks=pytest.mark.long) if name == "maxvit_t" else name for name in SMALLEST
]


@pytest.fixture(scope="module", params=TRIED)
def family(request):
    torch.manual_seed(0)
    model = torchvision_model(request.param)
    return model, model.make()


@pytest.mark.parametrize("form", CONFIGS)
class TestFamilies:
    def test_it_locks_trains_copies_and_exports(self, family, form):
        model, start = family
        if form == "chained" and model.name not in CHAINS:
            pytest.skip("a chain is the same whatever stands between: three families do")
        net, x = deepcopy(start), model.inputs()
        locks(net, CONFIGS[form])
        trains(net, x)
        assert exports(net, x) <= 1e-5
        copy_runs_its_own_lock(net, x)

    def test_unlocking_gives_back_bits(self, family, form):
        model, start = family
        if form == "affine" or (form == "chained" and model.name not in CHAINS):
            pytest.skip("mixing has all that affine has")
        net, x = deepcopy(start).eval(), model.inputs()
        with torch.no_grad():
            before = net(x)
            lock_model(net, CONFIGS[form])
            assert not torch.allclose(net(x), before, rtol=1e-2)
            unlock_model(net)
            assert torch.equal(net(x), before)
        assert public_face(net) == public_face(start)
        for name, tensor in start.state_dict().items():
            assert torch.equal(net.state_dict()[name], tensor), name


def test_functional_call_and_replicas_run_the_lock(family):
    model, start = family
    net, x = deepcopy(start).eval(), model.inputs()
    lock_model(net, CONFIGS["affine"])
    with torch.no_grad():
        expected = net(x)
        everything = {**dict(net.named_parameters()), **dict(net.named_buffers())}
        assert torch.equal(functional_call(net, everything, (x,)), expected)
        other = {n: p + 0.1 for n, p in net.named_parameters() if ".keylock." in n}
        assert not torch.allclose(functional_call(net, other, (x,)), expected, rtol=1e-3)
        assert torch.equal(net(x), expected)


# hardsigmoid and fused attention have no second derivative in torch, locked or not
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vit_b_32", "squeezenet1_1"])
def test_a_gradient_can_be_differentiated_again(name):
    torch.manual_seed(0)
    model = torchvision_model(name)
    net = model.make()
    lock_model(net, CONFIGS["mixing"])
    with sdpa_kernel(SDPBackend.MATH):
        slope = double_backward(net, model.inputs(3))
    assert slope.isfinite().all()
    assert slope.abs().max() > 0


@pytest.mark.parametrize("form", CONFIGS)
def test_a_data_parallel_replica_runs_its_own_copy_of_the_lock(form, monkeypatch):
    """torch's own replicate(); only its copying from device to device is done on this one."""
    module = importlib.import_module("torch.nn.parallel.replicate")
    monkeypatch.setattr(module, "_get_device_index", lambda device, _: device)
    monkeypatch.setattr(
        module,
        "_broadcast_coalesced_reshape",
        lambda tensors, devices, detach: [[t.detach().clone() for t in tensors] for _ in devices],
    )
    torch.manual_seed(0)
    model = torchvision_model("resnet18")
    net, x = model.make().eval(), model.inputs()
    lock_model(net, CONFIGS[form])
    expected = net(x)
    replicas = module.replicate(net, [0, 1])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    for replica in replicas:
        assert torch.allclose(replica(x), expected, atol=1e-5)
