"""Attacks follow the gradient of their objective: beside finite differences, in float64."""

import inspect
from math import prod

import pytest
import torch
from objectives import objective_of, off
from torch import nn
from torch.nn.utils import parametrizations

from fedml_keylock.errors import AttackError
from fedml_keylock.inversion.engine import probe as probing
from fedml_keylock.inversion.engine.exact import differentiable

FLAT, LINE, PLANE, SPACE, WORDS = (4, 6), (2, 4, 9), (2, 4, 6, 6), (2, 4, 3, 4, 5), (2, 3, 6)


class Called(nn.Module):
    """A layer that takes more than one input, or gives more than one output."""

    def __init__(self, layer, call):
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x):
        made = self.call(self.layer, x)
        while isinstance(made, tuple):
            made = made[0]
        return made


def unrolled(cell, x):
    state = None
    for step in x.unbind(1):
        state = cell(step, state)
    return state


def recurrent(layer):
    return Called(layer, lambda layer, x: layer(x))


def looked_up(layer, *more):
    places = torch.tensor([[0, 1, 2, 0, 1, 2]] * 4)
    return Called(layer, lambda layer, x: layer(places, *more).flatten(1)[:, :6] * x)


AT_ONCE = {
    "Linear": (lambda: nn.Linear(6, 4), FLAT),
    "Bilinear": (lambda: Called(nn.Bilinear(6, 6, 3), lambda m, x: m(x, x)), FLAT),
    "Conv1d": (lambda: nn.Conv1d(4, 4, 3), LINE),
    "Conv2d": (lambda: nn.Conv2d(4, 4, 3), PLANE),
    "Conv3d": (lambda: nn.Conv3d(4, 4, 2), SPACE),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 4, 3), LINE),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 4, 3), PLANE),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(4, 4, 2), SPACE),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(4), LINE),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(4), PLANE),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(4), SPACE),
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
    "Embedding": (lambda: looked_up(nn.Embedding(3, 6)), FLAT),
    "MultiheadAttention": (
        lambda: Called(nn.MultiheadAttention(6, 2, batch_first=True), lambda m, x: m(x, x, x)),
        WORDS,
    ),
    "MultiheadAttention, fused": (
        lambda: Called(
            nn.MultiheadAttention(6, 2, 0.5, batch_first=True),
            lambda m, x: m(x, x, x, need_weights=False),
        ),
        WORDS,
    ),
    "TransformerEncoderLayer": (
        lambda: nn.TransformerEncoderLayer(6, 2, 8, activation="gelu", batch_first=True),
        WORDS,
    ),
    "TransformerDecoderLayer": (
        lambda: Called(
            nn.TransformerDecoderLayer(6, 2, 8, activation="gelu", batch_first=True),
            lambda m, x: m(x, x),
        ),
        WORDS,
    ),
    "Transformer": (
        lambda: Called(
            nn.Transformer(6, 2, 1, 1, 8, activation="gelu", batch_first=True), lambda m, x: m(x, x)
        ),
        WORDS,
    ),
    "Hardsigmoid": (lambda: nn.Sequential(nn.Linear(6, 6), nn.Hardsigmoid()), FLAT),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(6, 4)), FLAT),
    "AdaptiveLogSoftmaxWithLoss": (
        lambda: Called(nn.AdaptiveLogSoftmaxWithLoss(6, 5, [2]), lambda m, x: m.log_prob(x)),
        FLAT,
    ),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(6, 4)), FLAT),
    "spectral norm, old": (lambda: nn.utils.spectral_norm(nn.Linear(6, 4)), FLAT),
}
ONE_BY_ONE = {
    "RNN": (lambda: recurrent(nn.RNN(6, 4, batch_first=True)), WORDS),
    "LSTM": (lambda: recurrent(nn.LSTM(6, 4, 2, batch_first=True, dropout=0.5)), WORDS),
    "LSTM, both ways": (
        lambda: recurrent(nn.LSTM(6, 4, batch_first=True, bidirectional=True, proj_size=2)),
        WORDS,
    ),
    "GRU": (lambda: recurrent(nn.GRU(6, 4, batch_first=True)), WORDS),
    "RNNCell": (lambda: Called(nn.RNNCell(6, 4), unrolled), WORDS),
    "LSTMCell": (lambda: Called(nn.LSTMCell(6, 4), unrolled), WORDS),
    "GRUCell": (lambda: Called(nn.GRUCell(6, 4), unrolled), WORDS),
}
LAYERS = AT_ONCE | ONE_BY_ONE
REFUSED = {"EmbeddingBag": (lambda: looked_up(nn.EmbeddingBag(3, 6)), FLAT)}
LOSSES = {"LinearCrossEntropyLoss"}
"""Of torch 2.14: it takes labels, and has a head's weights."""


class Scored(nn.Module):
    """Three scores of whatever a layer says of the rows of a table."""

    def __init__(self, layer, shape):
        super().__init__()
        self.layer, self.shape = layer, shape

    def forward(self, x):
        made = self.layer(x.view(self.shape)).flatten(1).tanh()
        ways = torch.arange(3 * made.shape[1], dtype=made.dtype).view(3, -1).cos()
        return made @ ways.T


@pytest.fixture
def said(monkeypatch):
    """The lines that a probe says."""
    lines = []
    monkeypatch.setattr(probing, "_say", lines.append)
    return lines


def scored(make, shape):
    torch.manual_seed(0)
    return objective_of(Scored(make(), (-1, *shape[1:])), shape[0], (prod(shape[1:]),))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of torch, on its own loops
@pytest.mark.parametrize("layer", LAYERS)
def test_the_gradient_of_an_objective_is_its_own(layer, said):
    """Guards `differentiable`: torch's second derivatives of some norms are wrong under vmap."""
    make, shape = LAYERS[layer]
    objective = scored(make, shape)
    assert objective.vmapped == (layer in AT_ONCE), said
    assert len(said) == (layer in ONE_BY_ONE)
    assert off(objective, torch.rand(3, prod(shape), dtype=torch.float64) - 0.5) < 1e-5


@pytest.mark.parametrize("layer", REFUSED)
def test_a_layer_without_a_second_derivative_is_named(layer):
    with pytest.raises(
        AttackError, match=rf"^layer\.layer \({layer}\) has no derivative .*; put an"
    ):
        scored(*REFUSED[layer])


def test_every_layer_of_torch_that_has_parameters_is_among_them():
    def has(kind):
        made = (vars(k).get("__init__") for k in kind.__mro__ if k is not nn.Module)
        names = {n for init in made if inspect.isfunction(init) for n in init.__code__.co_names}
        return not names.isdisjoint({"Parameter", "Linear", "TransformerEncoder"})

    kinds = {
        name
        for name, kind in vars(nn).items()
        if inspect.isclass(kind) and issubclass(kind, nn.Module) and has(kind)
        if not name.startswith("Lazy")
    }
    stacks = {"TransformerEncoder", "TransformerDecoder"}  # in Transformer
    bases = {"RNNBase", "RNNCellBase", "SyncBatchNorm"}
    assert kinds - stacks - bases - LOSSES <= set(LAYERS | REFUSED)
    assert len(kinds) > 25


@pytest.mark.parametrize("layer", [name for name in AT_ONCE if "Norm" in name or "Hard" in name])
def test_a_layer_computes_what_it_computed(layer):
    make, shape = AT_ONCE[layer]
    net = make().double().train()
    for parameter in net.parameters():
        nn.init.uniform_(parameter)
    images = torch.rand(*shape, dtype=torch.float64)
    with differentiable():
        found = net(images)
    assert torch.allclose(found, net(images), rtol=1e-12)


@pytest.mark.parametrize("wrong", [(torch.float32, torch.float64), (torch.float32,)])
def test_what_vmap_differentiates_wrongly_runs_one_by_one(said, monkeypatch, wrong):
    """As under another version of torch; but a deep net's rounding is not taken for that."""

    def slope(objective, *_, **__):
        odd = objective.vmapped and objective.public["layer.weight"].dtype in wrong
        return torch.ones(2) + odd

    monkeypatch.setattr(probing, "_slope", slope)
    monkeypatch.setattr(nn.Module, "double", lambda self: self)  # the objective is in float32
    objective = objective_of(Scored(nn.Linear(6, 4), (-1, 6)), 4, (6,))
    rounding = len(wrong) == 1
    assert objective.vmapped == rounding
    line = "vmap differentiates Scored wrongly: attacks on it take one candidate at a time"
    assert said == ([] if rounding else [line])
