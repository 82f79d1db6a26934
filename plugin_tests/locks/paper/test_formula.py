"""The lock against an independent statement of the paper's formula (arXiv 2305.04095, eq. 5-7)."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from fedml_keylock.locks import KeyLockConfig, lock_model, secret_variables
from fedml_keylock.locks.entropy import seeded_uniform
from fedml_keylock.locks.paper.attacker_model import AttackerLock, attacker_model
from fedml_keylock.locks.paper.module import KeyLock, locks

EPS, MOMENTUM = 1e-5, 0.1
ACTIVATIONS = {
    "relu": lambda v: torch.where(v > 0, v, torch.zeros_like(v)),
    "sigmoid": lambda v: 1 / (1 + torch.exp(-v)),
}
PAPER = KeyLockConfig(lock="paper", key_length=16)


def over(values, x, dim):
    """A vector of channels in the shape that multiplies along that dimension of x."""
    shape = [1] * x.dim()
    shape[dim] = -1
    return values.reshape(shape)


def standardised(x, dims):
    mean = x.mean(dims, keepdim=True)
    return (x - mean) / torch.sqrt(((x - mean) ** 2).mean(dims, keepdim=True) + EPS)


def batch_norm(x):
    return standardised(x, (0, *range(2, x.dim())))


def group_norm(groups):
    def norm(x):
        grouped = x.reshape(x.shape[0], groups, -1)
        return standardised(grouped, (2,)).reshape(x.shape)

    return norm


def instance_norm(x):
    return standardised(x, tuple(range(2, x.dim())))


def layer_norm(x):
    return standardised(x, (x.dim() - 1,))


def formula(lock, activation, normalised, dim=1):
    """``gamma * norm(h) + beta`` with ``gamma = act(W k + b)``, channel by channel."""
    act = ACTIVATIONS[activation]
    weight_gamma = torch.outer(lock.weight_gamma, lock.direction)
    weight_beta = torch.outer(lock.weight_beta, lock.direction)
    gamma = act((weight_gamma * lock.key).sum(1) + lock.bias_gamma)
    beta = act((weight_beta * lock.key).sum(1) + lock.bias_beta)
    return over(gamma, normalised, dim) * normalised + over(beta, normalised, dim)


def only_lock(model):
    ((_, _, lock),) = locks(model)
    return lock


def far_from_the_start(lock):
    """Values that training may reach; under relu, some channels of them are cut off at zero."""
    with torch.no_grad():
        for name in ("bias_gamma", "bias_beta"):
            bias = getattr(lock, name)
            bias.add_(torch.linspace(-3, 1, len(bias), dtype=bias.dtype))


def simulated(seed):
    return seeded_uniform(torch.Generator().manual_seed(seed))


def inputs(*shape):
    generator = torch.Generator().manual_seed(7)
    return 3 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1


class ChannelsLast(nn.Module):
    def forward(self, x):
        return x.movedim(1, -1)


# the layer, what is behind it, the input, the norm written out, where the channels are
BEHIND_A_NORM = {
    "conv1d-batch": ([nn.Conv1d(2, 5, 3), nn.BatchNorm1d(5)], (4, 2, 9), batch_norm, 1),
    "conv2d-batch": ([nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5)], (4, 2, 6, 7), batch_norm, 1),
    "conv3d-batch": ([nn.Conv3d(2, 5, 3), nn.BatchNorm3d(5)], (4, 2, 4, 5, 4), batch_norm, 1),
    "transpose1d-batch": (
        [nn.ConvTranspose1d(2, 5, 3), nn.BatchNorm1d(5)],
        (4, 2, 5),
        batch_norm,
        1,
    ),
    "transpose2d-group": (
        [nn.ConvTranspose2d(2, 6, 3), nn.GroupNorm(3, 6)],
        (4, 2, 5, 4),
        group_norm(3),
        1,
    ),
    "transpose3d-group": (
        [nn.ConvTranspose3d(2, 6, 2), nn.GroupNorm(2, 6, affine=False)],
        (2, 2, 3, 3, 2),
        group_norm(2),
        1,
    ),
    "conv2d-group": ([nn.Conv2d(2, 6, 3), nn.GroupNorm(2, 6)], (4, 2, 6, 7), group_norm(2), 1),
    "conv1d-instance": ([nn.Conv1d(2, 5, 3), nn.InstanceNorm1d(5)], (4, 2, 9), instance_norm, 1),
    "conv2d-instance": (
        [nn.Conv2d(2, 5, 3), nn.InstanceNorm2d(5, affine=True)],
        (4, 2, 6, 7),
        instance_norm,
        1,
    ),
    "conv3d-instance": (
        [nn.Conv3d(2, 5, 2), nn.InstanceNorm3d(5)],
        (2, 2, 3, 4, 3),
        instance_norm,
        1,
    ),
    "conv1d-own": ([nn.Conv1d(2, 5, 3)], (4, 2, 9), batch_norm, 1),
    "conv2d-own": ([nn.Conv2d(2, 5, 3)], (4, 2, 6, 7), batch_norm, 1),
    "conv3d-own": ([nn.Conv3d(2, 5, 3)], (4, 2, 4, 5, 4), batch_norm, 1),
    "transpose2d-own": ([nn.ConvTranspose2d(2, 5, 3)], (4, 2, 6, 7), batch_norm, 1),
}


def fresh(layers):
    """Unlocked float64 copies, their weights off what they start with."""
    layers = [deepcopy(layer).double() for layer in layers]
    for layer in layers[1:]:
        if getattr(layer, "weight", None) is not None:
            nn.init.uniform_(layer.weight, 2, 3)
            nn.init.uniform_(layer.bias, 2, 3)
    return layers


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", BEHIND_A_NORM)
def test_a_locked_convolution_computes_the_papers_formula(case, activation):
    layers, shape, norm, dim = BEHIND_A_NORM[case]
    model = nn.Sequential(*fresh(layers))
    x = inputs(*shape)
    config = KeyLockConfig(lock="paper", key_length=16, activation=activation)
    lock_model(model, config, uniform=simulated(0))
    model.double()
    far_from_the_start(only_lock(model))

    # the convolution's own output: functional, so that the lock's hook is not run
    layer = model[0]
    h = layer._conv_forward(x, layer.weight, layer.bias) if case.startswith("conv") else None
    if h is None:
        transpose = getattr(torch.nn.functional, f"conv_transpose{x.dim() - 2}d")
        h = transpose(x, layer.weight, layer.bias)
    expected = formula(only_lock(model), activation, norm(h), dim)
    assert torch.allclose(model(x), expected, atol=1e-6, rtol=0)
    assert expected.std() > 1e-2  # zeros would agree with anything


@pytest.mark.parametrize(
    ("norm", "written_out"),
    [(nn.BatchNorm1d, batch_norm), (nn.LayerNorm, layer_norm), (None, layer_norm)],
)
def test_a_locked_linear_layer_computes_the_papers_formula(norm, written_out):
    behind = [norm(5)] if norm else []
    layers = fresh([nn.Linear(8, 5), *behind])
    model = nn.Sequential(nn.Conv1d(1, 2, 1), nn.Flatten(), *layers).double()
    x = inputs(6, 1, 4)
    h = model[2](model[1](model[0](x))).detach()
    config = KeyLockConfig(lock="paper", key_length=16, layers=["2"])
    lock_model(model, config, uniform=simulated(1))
    far_from_the_start(only_lock(model))
    expected = formula(only_lock(model), "relu", written_out(h), -1)
    assert torch.allclose(model(x), expected, atol=1e-6, rtol=0)
    assert expected.std() > 1e-2


def test_a_linear_layer_over_many_positions_is_locked_along_its_features():
    model = nn.Sequential(nn.Conv1d(3, 4, 1), ChannelsLast(), nn.Linear(4, 5)).double()
    x = inputs(2, 3, 7)
    h = model(x).detach()
    lock_model(model, KeyLockConfig(lock="paper", layers=["2"]), uniform=simulated(2))
    expected = formula(only_lock(model), "relu", layer_norm(h), -1)
    assert torch.allclose(model(x), expected, atol=1e-6, rtol=0)


def test_a_layer_norm_behind_a_convolution_is_locked_along_the_last_dimension():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3)
            self.norm = nn.LayerNorm(4)

        def forward(self, x):
            return self.norm(self.conv(x).movedim(1, -1))

    model = Block().double()
    x = inputs(2, 2, 6, 5)
    h = model.conv(x).movedim(1, -1).detach()
    info = lock_model(model, PAPER, uniform=simulated(3))
    assert info.holders == ("norm",)
    expected = formula(only_lock(model), "relu", layer_norm(h), -1)
    assert torch.allclose(model(x), expected, atol=1e-6, rtol=0)


def running(x, steps):
    """Running mean and variance after so many training steps on the same values."""
    dims = (0, *range(2, x.dim()))
    mean, variance = torch.zeros(x.shape[1]).double(), torch.ones(x.shape[1]).double()
    for _ in range(steps):
        mean = (1 - MOMENTUM) * mean + MOMENTUM * x.mean(dims)
        variance = (1 - MOMENTUM) * variance + MOMENTUM * x.var(dims, unbiased=True)
    return mean, variance


@pytest.mark.parametrize("behind", [[], [nn.BatchNorm2d(5)]], ids=["own", "batch"])
def test_evaluation_normalises_by_the_running_statistics(behind):
    model = nn.Sequential(*fresh([nn.Conv2d(2, 5, 3), *behind]))
    x = inputs(4, 2, 6, 7)
    h = torch.nn.functional.conv2d(x, model[0].weight, model[0].bias)
    lock_model(model, PAPER, uniform=simulated(4))
    lock = only_lock(model)
    for _ in range(2):
        model(x)
    mean, variance = running(h, steps=2)
    normalised = (h - over(mean, h, 1)) / torch.sqrt(over(variance, h, 1) + EPS)
    expected = formula(lock, "relu", normalised)
    assert torch.allclose(model.eval()(x), expected, atol=1e-6, rtol=0)
    statistics = lock if not behind else model[1]
    assert torch.allclose(statistics.running_mean, mean, atol=1e-6, rtol=0)
    assert torch.allclose(statistics.running_var, variance, atol=1e-6, rtol=0)
    # and evaluation does not move them
    assert torch.allclose(model(x), expected, atol=1e-6, rtol=0)


def test_a_float32_lock_agrees_with_the_formula_to_rounding():
    model = nn.Sequential(nn.Conv2d(3, 12, 5))
    x = inputs(4, 3, 12, 12).float()
    h = torch.nn.functional.conv2d(x, model[0].weight, model[0].bias)
    lock_model(model, KeyLockConfig(lock="paper"))
    lock = only_lock(model)
    expected = formula(lock.double(), "relu", batch_norm(h.double()))
    lock.float()
    assert torch.allclose(model(x).double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("normalise", "channel_dim"), [(None, 1), (None, -1), ("batch", 1), ("layer", -1)]
)
def test_a_revealed_lock_with_a_silos_values_is_that_silos_lock(channel_dim, normalise):
    lock = KeyLock(4, PAPER, normalise=normalise, channel_dim=channel_dim).double()
    far_from_the_start(lock)
    x = inputs(3, 4, 5, 6) if channel_dim == 1 else inputs(3, 5, 4)
    attacker = AttackerLock(lock).double()
    assert not torch.allclose(attacker(x), lock(x))  # it starts as no lock at all
    gamma, beta = lock.scale(), lock.shift()
    with torch.no_grad():
        attacker.gamma.copy_(gamma)
        attacker.beta.copy_(beta)
    assert torch.allclose(attacker(x), lock(x), atol=1e-6, rtol=0)
    # an attacker replays a training step, whatever mode the copy is in
    assert torch.allclose(attacker.eval()(x), lock(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("normalise", [None, "batch", "layer"])
def test_a_revealed_lock_starts_as_no_lock(normalise):
    dim = -1 if normalise == "layer" else 1
    lock = KeyLock(4, PAPER, normalise=normalise, channel_dim=dim).double()
    x = inputs(3, 5, 4) if dim == -1 else inputs(3, 4, 5)
    expected = {None: lambda v: v, "batch": batch_norm, "layer": layer_norm}[normalise](x)
    assert torch.allclose(AttackerLock(lock).double()(x), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("layers", ["first", "all", ("0", "6")])
def test_the_attackers_model_with_a_silos_values_is_the_silos_model(layers, chained):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 3),
    )
    config = KeyLockConfig(lock="paper", key_length=16, layers=layers, chained=chained)
    attacker, unknowns = attacker_model(model, config)
    lock_model(model, config)
    truth = secret_variables(model)
    assert set(unknowns) == set(truth)
    x = inputs(3, 1, 6, 6).float()
    assert torch.allclose(functional_call(attacker, truth, (x,)), model(x), atol=1e-5, rtol=0)
    assert not torch.allclose(attacker(x), model(x), atol=1e-2)


def test_the_attackers_model_has_the_models_dtype():
    model = nn.Sequential(nn.Conv2d(1, 4, 3)).double()
    attacker, unknowns = attacker_model(model, PAPER)
    assert attacker(inputs(2, 1, 5, 5)).dtype == torch.float64
    assert {attacker.get_parameter(name).dtype for name in unknowns} == {torch.float64}
