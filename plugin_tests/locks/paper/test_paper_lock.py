"""The published lock from end to end: what silos, attackers and the server have of it."""

from __future__ import annotations

import pickle
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from nets import lenet
from torch import nn
from torch.nn.parallel.replicate import replicate

from fedml_keylock.errors import ConfigError, LockError, PrivateStateError, VaultError
from fedml_keylock.locks import (
    KeyLockConfig,
    check_model,
    export_model,
    load_private_state_dict,
    lock_info,
    lock_model,
    make_lock,
    private_state_dict,
    secret_variables,
    unlock_model,
)
from fedml_keylock.locks.entropy import seeded_uniform
from fedml_keylock.locks.paper.chain import lock_values
from fedml_keylock.locks.paper.module import locks

WAYS = {
    "first": {},
    "all": {"layers": "all"},
    "a head": {"layers": ("0", "stem", "7", "head")},
    "sigmoid": {"layers": "all", "activation": "sigmoid"},
    "chained": {"layers": "all", "chained": True},
    "shared statistics": {"layers": "all", "share_norm_statistics": True},
}


class Residual(nn.Module):
    """Norms, a sum, and a head behind a pool."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, bias=False), nn.BatchNorm2d(16)
        self.conv, self.behind = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.behind(self.conv(x)))
        return self.head(x.mean((2, 3)))


NETS = {"lenet": lenet, "residual": Residual}
IMAGES = torch.rand(6, 1, 12, 12, generator=torch.Generator().manual_seed(5))


def made(net):
    torch.manual_seed(0)
    return NETS[net]()


def locked(net, way, seed=0):
    settings = dict(WAYS[way])
    if way == "a head":  # of the names that the other net has
        names = dict(NETS[net]().named_modules())
        settings["layers"] = tuple(name for name in settings["layers"] if name in names)
    config = KeyLockConfig(lock="paper", key_length=8, **settings)
    model = made(net)
    lock_model(model, config, uniform=seeded_uniform(torch.Generator().manual_seed(seed)))
    return model, config


def step(model, images=IMAGES):
    trained = [p for p in model.parameters() if p.requires_grad]
    loss = F.cross_entropy(model(images), torch.arange(len(images)))
    for parameter, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
        with torch.no_grad():
            parameter -= 0.05 * gradient


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("net", NETS)
class TestEveryWay:
    def test_the_public_state_has_the_plain_names_and_nothing_private(self, net, way):
        model, config = locked(net, way)
        plain = made(net)
        constants = check_model(plain, config).constants
        step(model)
        state = model.state_dict()
        assert {n: t.shape for n, t in state.items()} == {
            n: t.shape for n, t in plain.state_dict().items()
        }
        for name, value in constants.items():
            assert (state[name] == value).all(), name
        for name, secret in private_state_dict(model).items():
            # of batches an open norm has counted as many
            counts = name.endswith("num_batches_tracked")
            shown = [state[name]] if counts else state.values()
            assert not any(torch.equal(secret, t) for t in shown), name
        with pytest.raises(PrivateStateError):
            pickle.dumps(model)

    def test_a_step_trains_every_part_of_it(self, net, way):
        model, _ = locked(net, way)
        before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        assert any("keylock" in name for name in before)
        step(model)
        for name, parameter in model.named_parameters():
            # a bias in front of a batch norm, or a beta at a dead relu, has no gradient
            if name in before and not name.endswith(("bias", "beta")):
                assert not torch.equal(parameter, before[name]), name

    def test_the_attackers_model_computes_the_same_with_the_silos_values(self, net, way):
        model, config = locked(net, way)
        step(model)
        known = make_lock(config).attacker_model(made(net))
        values = secret_variables(model)
        assert set(values) == set(known.names)
        known.model.load_state_dict(model.state_dict() | values, strict=False)
        torch.testing.assert_close(known.model.train()(IMAGES), model.train()(IMAGES))

    def test_the_attackers_draws_are_of_the_silos_kind(self, net, way):
        model, config = locked(net, way)
        draws = (
            make_lock(config).attacker_model(made(net)).draw(2, torch.Generator().manual_seed(1))
        )
        values = secret_variables(model)
        assert {n: t.shape[1:] for n, t in draws.items()} == {n: t.shape for n, t in values.items()}
        # in distribution: nothing is ever at its neutral value, and no two draws agree
        for name, (one, two) in draws.items():
            assert not torch.allclose(one, two, atol=1e-3), name
            assert not torch.allclose(one, torch.full_like(one, float("gamma" in name))), name

    def test_the_export_computes_the_same(self, net, way):
        model, _ = locked(net, way)
        step(model)
        plain = export_model(model.eval())
        torch.testing.assert_close(plain(IMAGES), model(IMAGES), atol=1e-4, rtol=1e-4)
        assert not any("keylock" in name for name, _ in plain.named_parameters())

    def test_unlocked_it_is_what_it_was(self, net, way):
        plain = made(net).eval()
        model, _ = locked(net, way)
        assert not torch.allclose(model.eval()(IMAGES), plain(IMAGES))
        unlock_model(model)
        assert torch.equal(model(IMAGES), plain(IMAGES))
        assert all(parameter.requires_grad for parameter in model.parameters())

    def test_its_private_state_makes_another_model_of_the_same(self, net, way):
        model, _ = locked(net, way)
        step(model)
        other, _ = locked(net, way, seed=1)
        other.load_state_dict(model.state_dict())
        assert not torch.allclose(other.eval()(IMAGES), model.eval()(IMAGES))
        load_private_state_dict(other, private_state_dict(model))
        assert torch.equal(other(IMAGES), model(IMAGES))

    def test_another_lock_than_the_owners_is_another_model(self, net, way):
        model, config = locked(net, way)
        step(model)
        before, out = private_state_dict(model), model.eval()(IMAGES)
        lock = make_lock(config)
        other = lock.as_outsider(made(net), lambda: deepcopy(model), None)
        assert not torch.allclose(other(IMAGES), out, atol=1e-3)
        for name, tensor in private_state_dict(other).items():
            statistic = ".keylock." not in name or "running" in name
            assert torch.equal(tensor, before[name]) is statistic, name
        assert torch.equal(model(IMAGES), out)


@pytest.mark.parametrize("chained", [False, True])
def test_a_new_gamma_is_about_1_and_away_from_0_and_a_new_beta_about_0(chained):
    model, _ = locked("lenet", "chained" if chained else "all")
    for gamma, beta in lock_values(model).values():
        assert 0.35 < float((gamma.detach() - 1).abs().max()) <= 0.7 + 1e-5
        assert 0 < float(beta.detach().abs().max()) < 1.5


class TestWhatIsOfTheOtherLock:
    """Each lock refuses what is the other's, whoever asks."""

    def test_the_private_state_of_the_other_lock(self):
        one, other = made("lenet"), made("lenet")
        lock_model(one, KeyLockConfig(lock="paper"))
        lock_model(other, KeyLockConfig(lock="rotated"))
        states = private_state_dict(one), private_state_dict(other)
        with pytest.raises(VaultError, match="that of another lock"):
            load_private_state_dict(one, states[1])
        with pytest.raises(VaultError, match="that of another lock"):
            load_private_state_dict(other, states[0])
        for model, state in zip((one, other), states, strict=True):
            now = private_state_dict(model)
            assert all(torch.equal(now[name], tensor) for name, tensor in state.items())

    def test_a_round_of_the_global_model(self, tmp_path):
        model, config = locked("lenet", "first")
        lock, state = make_lock(config), made("lenet").state_dict()
        with pytest.raises(ConfigError, match=r"^--round: of lock: rotated only"):
            lock.load_public(model, state, round_index=0, source=tmp_path / "global.pt")
        lock.load_public(model, state, round_index=None, source=tmp_path / "global.pt")
        assert torch.equal(model[0].weight, state["0.weight"])


def test_what_it_says_of_itself():
    named = KeyLockConfig(lock="paper", layers=["stem", "head.*"], chained=True)
    assert make_lock(named).title == "keylock:paper:stem,head.*:chained"
    paper = make_lock(KeyLockConfig(lock="paper"))
    assert paper.title == "keylock:paper:first"
    assert "does not withstand an attacker who knows of it" in paper.weakness
    assert (paper.credentials, paper.seals, paper.transforms_updates) == (None, False, False)
    assert paper.wraps_model


class Two(nn.Module):
    """A layer that feeds two norms."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.one, self.two = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        return self.one(x) + self.two(x)


def test_a_layer_that_feeds_two_norms_has_a_lock_on_each():
    model = Two()
    info = lock_model(model, KeyLockConfig(lock="paper"))
    assert (info.layers, info.holders) == (("conv",), ("one", "two"))
    assert [name for name, _, _ in locks(model)] == ["one", "two"]
    (layer,) = check_model(Two(), KeyLockConfig(lock="paper")).layers
    assert layer.how == "by a lock on one, two"


def test_a_key_that_would_be_lost_is_refused():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(1, 4, 3))
    with pytest.raises(LockError, match="a key needs a model with values: take it off meta"):
        lock_model(model, KeyLockConfig(lock="paper", key_length=16), key=torch.rand(16))
    with pytest.raises(LockError, match="a chained lock needs a model with values"):
        lock_model(model, KeyLockConfig(lock="paper", chained=True))
    assert not any(locks(model))


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


ALL = KeyLockConfig(lock="paper", layers="all", key_length=16)


def test_what_is_public_stays_what_it_was_and_only_that_is_counted_so():
    model, plain = net(), net()
    info = lock_model(model, ALL)
    for name, value in plain.state_dict().items():
        if not name.startswith("1.") or name == "1.num_batches_tracked":  # a norm's constants
            assert torch.equal(model.state_dict()[name], value), name
    assert info == lock_info(model)
    assert info.private_parameters == 4 * 4 + 4 * 6
    assert info.public_parameters == sum(p.numel() for p in plain.parameters())


def test_a_compiled_model_that_was_locked_later_is_locked():
    model, x = net().eval(), torch.rand(2, 1, 8, 8)
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    lock_model(model, ALL)
    torch.testing.assert_close(compiled(x), model(x))
    before = model(x)
    with torch.no_grad():
        next(lock for _, _, lock in locks(model)).bias_gamma.add_(1)
    assert not torch.allclose(compiled(x), before, atol=1e-3)


@pytest.mark.parametrize("chained", [False, True])
def test_a_data_parallel_replica_runs_its_own_copy_of_the_lock(chained, monkeypatch):
    """torch's own replicate(); only its copying from device to device is done on this one."""
    module = replicate.__globals__
    monkeypatch.setitem(module, "_get_device_index", lambda device, _: device)
    monkeypatch.setitem(
        module,
        "_broadcast_coalesced_reshape",
        lambda tensors, devices, detach: [[t.detach().clone() for t in tensors] for _ in devices],
    )
    model, x = deepcopy(net()).eval(), torch.rand(2, 1, 8, 8)
    lock_model(model, ALL.model_copy(update={"chained": chained}))
    expected = model(x)
    replicas = replicate(model, [0, 1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert not torch.allclose(model(x), expected, atol=1e-3)  # the control
    for replica in replicas:
        assert torch.allclose(replica(x), expected, atol=1e-5)
