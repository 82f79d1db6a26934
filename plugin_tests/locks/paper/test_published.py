"""Parity with the paper: given its key and weights, its formula (arXiv 2305.04095, eq. 5-7)."""

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, cross_entropy

from fedml_keylock.errors import LockError
from fedml_keylock.locks import KeyLockConfig, lock_model
from fedml_keylock.locks.paper.module import locks

ACT = {"relu": lambda v: v.clamp(min=0), "sigmoid": lambda v: 1 / (1 + (-v).exp())}


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 3),
    ).double()


def paper_weights(channels, length, generator):
    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64) / 8

    return {
        "weight_gamma": draw(channels, length),
        "weight_beta": draw(channels, length),
        "bias_gamma": 1 + draw(channels),
        "bias_beta": draw(channels),
    }


def set_published(lock, weights, key):
    """Give a lock the paper's key and weights; in a chain only the first has a key of its own."""
    if key is not None:
        lock.key, lock.direction = key.clone(), key / key.dot(key)
    with torch.no_grad():
        for name in ("gamma", "beta"):
            weight = weights[f"weight_{name}"]
            if lock.key is None:
                weight = weight / getattr(lock, f"scale_{name}")
            else:
                weight = torch.mv(weight, lock.key)
            getattr(lock, f"weight_{name}").copy_(weight)
            getattr(lock, f"bias_{name}").copy_(weights[f"bias_{name}"])


def images():
    return torch.rand(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def paper_forward(model, x, per_layer, key, act, *, chained):
    """The paper's network, written out: conv, norm by the batch, gamma, beta, activation."""
    convolutions = [m for m in model if isinstance(m, nn.Conv2d)]
    gamma = beta = key
    for conv, weights in zip(convolutions, per_layer, strict=True):
        keys = (gamma, beta) if chained else (key, key)
        h = conv2d(x, conv.weight, conv.bias)
        mean = h.mean((0, 2, 3), keepdim=True)
        h = (h - mean) / (((h - mean) ** 2).mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
        gamma = act(weights["weight_gamma"] @ keys[0] + weights["bias_gamma"])
        beta = act(weights["weight_beta"] @ keys[1] + weights["bias_beta"])
        x = (gamma[:, None, None] * h + beta[:, None, None]).clamp(min=0)
    return model[-1](x.flatten(1))


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize("chained", [False, True])
def test_the_papers_key_and_weights_give_the_papers_outputs(chained, activation):
    generator = torch.Generator().manual_seed(1)
    model = net()
    config = KeyLockConfig(
        lock="paper", layers="all", chained=chained, activation=activation, key_length=32
    )
    lock_model(model, config)
    key = torch.rand(32, generator=generator, dtype=torch.float64)  # as the reference draws it
    lengths = [32, 4, 6] if chained else [32, 32, 32]
    per_layer = []
    for (_, _, lock), length in zip(locks(model), lengths, strict=True):
        weights = paper_weights(lock.channels, length, generator)
        set_published(lock, weights, None if chained and per_layer else key)
        per_layer.append(weights)
    expected = paper_forward(model, images(), per_layer, key, ACT[activation], chained=chained)
    assert torch.allclose(model(images()), expected, atol=1e-6, rtol=0)


def test_training_the_papers_weights_and_ours_is_the_same_path():
    """W stays at its start plus a column times the key, so that one number a channel is enough."""
    generator = torch.Generator().manual_seed(2)
    key = torch.rand(16, generator=generator, dtype=torch.float64)
    key /= key.norm()
    model = net()
    lock_model(model, KeyLockConfig(lock="paper", layers="all", key_length=16))
    per_layer = []
    for _, _, lock in locks(model):
        weights = paper_weights(lock.channels, 16, generator)
        set_published(lock, weights, key)
        per_layer.append({n: w.clone().requires_grad_() for n, w in weights.items()})
    dense = [w for weights in per_layer for w in weights.values()]
    ours = [p for _, _, lock in locks(model) for p in lock.parameters()]
    how = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}
    optimizers = torch.optim.SGD(dense, **how), torch.optim.SGD(ours, **how)
    target = torch.arange(3)
    for _ in range(5):
        paper = paper_forward(model, images(), per_layer, key, ACT["relu"], chained=False)
        for optimizer, output in zip(optimizers, (paper, model(images())), strict=True):
            optimizer.zero_grad()
            cross_entropy(output, target).backward()
            optimizer.step()
    after = paper_forward(model, images(), per_layer, key, ACT["relu"], chained=False)
    assert torch.allclose(model(images()), after, atol=1e-9, rtol=0)


def test_a_chain_runs_through_the_whole_model_and_in_no_part_of_it():
    model = net()
    lock_model(model, KeyLockConfig(lock="paper", layers="all", chained=True))
    model(images())
    assert all(lock.values is None for _, _, lock in locks(model))  # nothing is kept between passes
    with pytest.raises(LockError, match="call the whole model"):
        model[2:4](torch.rand(1, 4, 5, 5).double())
    with pytest.raises(RuntimeError):  # too few channels
        model(torch.rand(1, 2, 8, 8).double())
    assert all(lock.values is None for _, _, lock in locks(model))


def test_in_a_chain_the_first_key_reaches_every_lock():
    model = net()
    lock_model(model, KeyLockConfig(lock="paper", layers="all", chained=True))
    model(images()).sum().backward()
    first = next(lock for _, _, lock in locks(model))
    # the first lock's weights move the last one's gamma: their gradient without the first layer's
    # own use of gamma would be zero if the keys were cut off
    last = [lock for _, _, lock in locks(model)][-1]
    assert last.weight_gamma.grad.abs().max() > 0
    with torch.no_grad():
        before = model(images())
        first.key.mul_(-1)
        assert not torch.allclose(model(images()), before, atol=1e-3)
