"""Attacks follow the gradient of their objective: beside finite differences, in float64."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from fedml_keylock.inversion.engine.exact import ScaleAfterNorm

FLAT, LINE, PLANE, SPACE = (4, 6), (2, 4, 9), (2, 4, 6, 6), (2, 4, 3, 4, 5)
LAYERS = {
    "Linear": (lambda: nn.Linear(6, 4), FLAT),
    "Conv1d": (lambda: nn.Conv1d(4, 4, 3), LINE),
    "Conv2d": (lambda: nn.Conv2d(4, 4, 3), PLANE),
    "Conv3d": (lambda: nn.Conv3d(4, 4, 2), SPACE),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 4, 3), LINE),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 4, 3), PLANE),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(4, 4, 2), SPACE),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(4, track_running_stats=False), LINE),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(4, track_running_stats=False), PLANE),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(4, track_running_stats=False), SPACE),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(4, affine=True), LINE),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(4, affine=True), PLANE),
    "InstanceNorm3d": (lambda: nn.InstanceNorm3d(4, affine=True), SPACE),
    "InstanceNorm2d, tracking": (
        lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        PLANE,
    ),
    "LayerNorm": (lambda: nn.LayerNorm(6), FLAT),
    "LayerNorm, two dimensions": (lambda: nn.LayerNorm((6, 6)), PLANE),
    "LayerNorm, no bias": (lambda: nn.LayerNorm(6, bias=False), FLAT),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), PLANE),
    "RMSNorm": (lambda: nn.RMSNorm(6), FLAT),
    "PReLU": (lambda: nn.PReLU(4), PLANE),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_the_gradient_of_a_matching_objective_is_its_own(layer):
    """Guards `ScaleAfterNorm`: torch's second derivatives of some norms are wrong under vmap."""
    make, shape = LAYERS[layer]
    torch.manual_seed(0)
    net = nn.Sequential(make(), nn.Tanh()).double().train()
    weights = {n: p.detach() + 0.3 * torch.randn_like(p) for n, p in net.named_parameters()}
    targets = {n: torch.randn_like(p) for n, p in weights.items()}
    candidates = torch.rand(3, *shape, dtype=torch.float64, requires_grad=True)

    def loss(weights, images):
        with ScaleAfterNorm():
            return functional_call(net, weights, (images,)).sin().square().mean()

    def objective(rows):
        made = vmap(grad(loss), in_dims=(None, 0))(weights, rows)
        return sum((made[n] - targets[n]).square().flatten(1).sum(1) for n in weights)

    (gradient,) = torch.autograd.grad(objective(candidates).sum(), candidates)
    way, step = torch.randn_like(candidates), 1e-5
    with torch.no_grad():
        rise = objective(candidates + step * way) - objective(candidates - step * way)
    found = (gradient * way).flatten(1).sum(1)
    assert torch.allclose(found, rise / (2 * step), rtol=1e-5, atol=1e-9), found


@pytest.mark.parametrize("layer", [name for name in LAYERS if "Norm" in name])
def test_the_norm_computes_what_it_computed(layer):
    make, shape = LAYERS[layer]
    net = make().double().train()
    for parameter in net.parameters():
        nn.init.uniform_(parameter)
    images = torch.rand(*shape, dtype=torch.float64)
    with ScaleAfterNorm():
        found = net(images)
    assert torch.allclose(found, net(images), rtol=1e-12)
