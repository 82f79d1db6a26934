"""`module: weights`: the mixing on a layer's weight and bias, and where it cannot be there."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from fedml_keylock.errors import LockError
from fedml_keylock.locks import (
    KeyLockConfig,
    check_model,
    draw_effective,
    effective_state,
    load_private_state_dict,
    lock_info,
    lock_model,
    private_state_dict,
    unlock_model,
)
from fedml_keylock.locks.entropy import seeded_uniform
from fedml_keylock.locks.paper.gradients import Watch
from fedml_keylock.locks.paper.module import KeyLock, WeightLock, every_lock, locks

WEIGHTS = KeyLockConfig(key_length=16, module="weights", targets="all")
INPUTS = KeyLockConfig(module="weights+inputs", targets="all")
FORMS = [INPUTS.model_copy(update={"form": form}) for form in ("grouped", "householder")]
LAYERS = {
    "conv1d": (lambda: nn.Conv1d(2, 5, 3, stride=2), (4, 2, 9)),
    "conv2d": (lambda: nn.Conv2d(2, 5, 3, padding=1), (4, 2, 6, 7)),
    "conv2d without bias": (lambda: nn.Conv2d(2, 5, 3, bias=False), (4, 2, 6, 7)),
    "conv2d, few positions": (lambda: nn.Conv2d(2, 5, 3), (1, 2, 3, 4)),
    "conv3d": (lambda: nn.Conv3d(2, 5, 3), (2, 2, 4, 5, 4)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(2, 5, 3), (4, 2, 6)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(2, 5, 3), (4, 2, 6, 7)),
}


def uniform(seed=0):
    return seeded_uniform(torch.Generator().manual_seed(seed))


def drawn(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def lock_of(model, name):
    return {holder: lock for holder, _, lock in every_lock(model)}[name]


def mixed(x, mixing):
    """Written out: each channel is a row's sum over all channels."""
    rows = [sum(weight * x[:, c] for c, weight in enumerate(row)) for row in mixing]
    return torch.stack(rows, 1)


@pytest.mark.parametrize("layer", LAYERS)
def test_without_a_norm_gamma_beta_and_mixing_are_on_the_weights(layer):
    make, shape = LAYERS[layer]
    model = nn.Sequential(make()).double()
    x = drawn(*shape)
    plain = model(x).detach()
    lock_model(model, WEIGHTS, uniform=uniform())
    model.double()
    lock = lock_of(model, "0")
    assert lock.normalise is None
    over = (-1, *[1] * (plain.dim() - 2))
    expected = lock.scale().view(over) * mixed(plain, lock.mixing) + lock.shift().view(over)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("layer", LAYERS)
def test_in_front_of_a_norm_the_weights_are_mixed(layer):
    make, shape = LAYERS[layer]
    norm = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)]
    model = nn.Sequential(make(), norm(5)).double()
    x = drawn(*shape)
    plain = model[0](x).detach()
    lock_model(model, WEIGHTS, uniform=uniform())
    model.double()
    assert isinstance(lock_of(model, "0"), WeightLock)
    lock = lock_of(model, "1")
    assert isinstance(lock, KeyLock)
    assert lock.mixing is None
    bare = F.batch_norm(mixed(plain, lock_of(model, "0").mixing), None, None, training=True)
    over = (-1, *[1] * (plain.dim() - 2))
    expected = lock.scale().view(over) * bare + lock.shift().view(over)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("config", [WEIGHTS, INPUTS, *FORMS])
@pytest.mark.parametrize("size", [3, 12])
def test_the_lock_acts_where_it_costs_less_and_gives_the_same_gradients(size, config):
    """On what a layer with few positions gets and gives, on the weight of one with many."""
    model = nn.Sequential(
        nn.Conv2d(2, 12, 1), nn.Conv2d(12, 10, 3), nn.Flatten(), nn.LazyLinear(2)
    ).double()
    x = drawn(1, 2, size, size)
    model(x)
    lock_model(model, config, uniform=uniform())
    model.double()
    used = []
    lock = lock_of(model, "1")
    assert (lock.mixing_inputs is not None) == (config is not WEIGHTS)
    for name in ("on_both", "on_output"):
        function = getattr(lock, name)

        def seen(*args, _name=name, _function=function, **kwargs):
            used.append(_name)
            return _function(*args, **kwargs)

        setattr(lock, name, seen)
    model(x).square().sum().backward()
    assert used == ["on_output" if size == 3 else "on_both"]
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for name in ("on_both", "on_output"):
        delattr(lock, name)
    layer = model[1]
    # by the mixed weight, whatever it costs
    y = layer._conv_forward(model[0](x), layer.weight, layer.bias)
    model[3](model[2](y)).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, found[name])


@pytest.mark.parametrize("config", [WEIGHTS, INPUTS])
def test_one_picture_without_a_batch(config):
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Conv2d(3, 3, 3))
    lock_model(model, config, uniform=uniform())
    x = torch.rand(2, 3, 3)
    torch.testing.assert_close(model(x), model(x[None])[0])


def test_of_a_linear_layer():
    model = nn.Sequential(nn.Conv1d(1, 2, 1), nn.Flatten(), nn.Linear(8, 5)).double()
    x = drawn(6, 1, 4)
    plain = model(x).detach()
    config = KeyLockConfig(module="weights", targets=["2"])
    lock_model(model, config, uniform=uniform())
    model.double()
    lock = lock_of(model, "2")
    torch.testing.assert_close(model(x), lock.scale() * mixed(plain, lock.mixing) + lock.shift())


class Standardised(nn.Conv2d):
    """Computes with something else than its weight."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / weight.std(), self.bias)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Conv2d(4, 4, 3, groups=4),
        lambda: Standardised(4, 4, 3),
        lambda: weight_norm(nn.Conv2d(4, 4, 3)),
    ],
    ids=["grouped", "a forward of the user's", "reparametrised"],
)
@pytest.mark.parametrize("behind", [[], [nn.BatchNorm2d(4)]], ids=["own norm", "norm"])
def test_where_rows_cannot_be_mixed_the_mixing_stands_behind(layer, behind):
    head = (nn.Flatten(), nn.Linear(64, 2))
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), layer(), *deepcopy(behind), *head)
    twin = deepcopy(model)
    lock_model(model, WEIGHTS, uniform=uniform())
    lock = lock_of(model, "3" if behind else "2")
    assert lock.mixing is not None
    assert not lock.on_weights
    # as `mixing` has it
    lock_model(twin, KeyLockConfig(module="mixing", targets="all"))
    assert lock.normalise == lock_of(twin, "3" if behind else "2").normalise
    loss = model(torch.rand(2, 1, 8, 8)).square().mean()
    loss.backward()
    assert lock.mixing.grad.any()


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.GELU(),
        nn.Conv2d(4, 6, 3),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(96, 3),
    )


def step(model, x, labels, rate=0.1):
    optimizer = torch.optim.SGD(model.parameters(), rate)
    F.cross_entropy(model(x), labels).backward()
    optimizer.step()


def test_what_is_public_stays_what_it_was():
    model, plain = net(), net()
    lock_model(model, WEIGHTS)
    state = model.state_dict()
    assert list(state) == list(plain.state_dict())
    for name, value in plain.state_dict().items():
        if name.startswith("1.") and name != "1.num_batches_tracked":
            continue  # a locked norm's constants
        assert torch.equal(state[name], value), name
    assert {type(m) for m in model} >= {type(model[0])}
    assert isinstance(model[0], nn.Conv2d)
    # what the layer computes with is neither what is shared nor far from it in size
    assert not torch.allclose(model[0].weight, state["0.weight"])
    torch.testing.assert_close(model[0].weight.norm(), state["0.weight"].norm())


def test_everything_is_trained_and_nothing_private_is_in_the_state():
    model, x, labels = net(), torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    lock_model(model, WEIGHTS)
    watch = Watch(model)
    private = private_state_dict(model)
    public = {n: v.clone() for n, v in model.state_dict().items()}
    step(model, x, labels)
    assert watch.finish(0)
    moved = private_state_dict(model)
    assert not torch.equal(moved["0.keylock.mixing"], private["0.keylock.mixing"])
    assert not torch.equal(moved["3.keylock.mixing"], private["3.keylock.mixing"])
    assert not torch.equal(model.state_dict()["0.weight"], public["0.weight"])
    assert not any("keylock" in name for name in model.state_dict())


def test_a_mixing_that_the_optimizer_does_not_hold_is_noticed():
    model, x, labels = net(), torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    lock_model(model, WEIGHTS)
    watch = Watch(model)
    rest = [p for n, p in model.named_parameters() if n != "0.keylock.mixing"]
    optimizer = torch.optim.SGD(rest, 5.0)
    F.cross_entropy(model(x), labels).backward()
    optimizer.step()
    with pytest.raises(LockError, match=r"the lock on 0 was not trained in round 3"):
        watch.finish(3)


def test_private_state_goes_from_one_model_to_another():
    model, x = net(), torch.rand(4, 1, 8, 8)
    lock_model(model, WEIGHTS)
    step(model, x, torch.tensor([0, 1, 2, 0]))
    other = net()
    lock_model(other, WEIGHTS)
    other.load_state_dict(model.state_dict())
    assert not torch.allclose(other(x), model(x), atol=1e-3)
    load_private_state_dict(other, private_state_dict(model))
    torch.testing.assert_close(other(x), model(x))


def test_unlocking_gives_the_model_back_bit_for_bit():
    model, plain, x = net(), net(), torch.rand(4, 1, 8, 8)
    lock_model(model, WEIGHTS)
    assert not torch.allclose(model.eval()(x), plain.eval()(x), atol=1e-3)
    unlock_model(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert torch.equal(model(x), plain(x))
    for (name, value), (_, other) in zip(
        model.named_parameters(), plain.named_parameters(), strict=True
    ):
        assert torch.equal(value, other), name
    assert torch.equal(model.train()(x), plain.train()(x))


def test_no_two_locks_are_alike_and_an_attackers_are_drawn_alike():
    model, other = net(), net()
    lock_model(model, WEIGHTS)
    lock_model(other, WEIGHTS)
    one, two = effective_state(model), effective_state(other)
    assert set(one) == {
        *("0.keylock.mixing", "1.keylock.gamma", "1.keylock.beta"),
        *("3.keylock.gamma", "3.keylock.beta", "3.keylock.mixing"),
    }
    assert not any(torch.allclose(one[name], two[name], atol=1e-3) for name in one)
    draws = draw_effective(net(), WEIGHTS, 3, torch.Generator().manual_seed(0))
    assert {name: value.shape[1:] for name, value in draws.items()} == {
        name: value.shape for name, value in one.items()
    }
    for mixing in draws["0.keylock.mixing"]:
        torch.testing.assert_close(mixing @ mixing.T, torch.eye(4))


def test_a_layer_that_feeds_two_norms_is_mixed_once():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)
            self.one, self.two = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.conv(x)
            return self.one(x) + self.two(x)

    model = Two()
    lock_model(model, WEIGHTS)
    kinds = {name: type(lock).__name__ for name, _, lock in every_lock(model)}
    assert kinds == {"conv": "WeightLock", "one": "KeyLock", "two": "KeyLock"}


def test_from_meta_it_is_drawn_when_it_gets_memory():
    with torch.device("meta"):
        norm, head = nn.BatchNorm2d(4), nn.Linear(4, 2)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Conv2d(4, 4, 3), nn.Flatten(), head)
    lock_model(model, WEIGHTS)
    model.to_empty(device="cpu")
    for name in ("0", "2"):
        mixing = lock_of(model, name).mixing
        torch.testing.assert_close(mixing @ mixing.T, torch.eye(4))


def test_a_key_that_would_be_lost_is_refused():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(1, 4, 3))
    config = KeyLockConfig(module="affine", key_length=16)
    with pytest.raises(LockError, match="a key needs a model with values: take it off meta"):
        lock_model(model, config, key=torch.rand(16))
    assert not any(locks(model))


def test_a_compiled_model_that_was_locked_later_is_locked():
    model, x = net().eval(), torch.rand(2, 1, 8, 8)
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    lock_model(model, WEIGHTS)
    torch.testing.assert_close(compiled(x), model(x))
    before = model(x)
    with torch.no_grad():
        next(lock for _, _, lock in locks(model)).bias_gamma.add_(1)
    assert not torch.allclose(compiled(x), before, atol=1e-3)


def test_a_replica_computes_with_what_it_is_handed():
    """As DataParallel makes them: without parameters, each handed over as an attribute."""
    model, x = net(), torch.rand(2, 1, 8, 8)
    lock_model(model, WEIGHTS)
    expected = model(x).detach()
    replica = deepcopy(model)
    for module in replica.modules():
        handed = {
            name: p.detach().clone() for name, p in module._parameters.items() if p is not None
        }
        module._parameters = dict.fromkeys(module._parameters)
        for name, value in handed.items():
            if isinstance(module, nn.BatchNorm2d) and "keylock" in module._modules:
                continue
            del module._parameters[name]
            setattr(module, name, value)
    torch.testing.assert_close(replica(x), expected)


def test_check_says_where_the_mixing_goes():
    said = {layer.layer: layer.how for layer in check_model(net(), WEIGHTS).layers}
    assert said["0"] == "by a lock on 1, and its weights are mixed"
    assert said["3"] == "by a lock on its weights"
    model = net()
    lock_model(model, WEIGHTS)
    info = lock_info(model)
    assert info.layers == ("0", "3")
    assert info.private_parameters == 4 * 4 + 4 * 4 + (4 * 6 + 6 * 6)
    assert "weights" in repr(model[3].keylock)
    assert repr(model[0].keylock) == "WeightLock(mixing (4, 4))"
