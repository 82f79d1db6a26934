"""Locks at the wire leave the model as it is: what hangs on it, what does not, and what cannot."""

from __future__ import annotations

import io
import pickle
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from nets import lenet
from torch import nn
from torch.nn.parameter import is_lazy

from fedml_keylock.errors import LockError, PrivateStateError
from fedml_keylock.locks import (
    KeyLockConfig,
    check_model,
    export_model,
    is_locked,
    lock_info,
    lock_model,
    make_lock,
    unlock_model,
)
from fedml_keylock.locks.entropy import seeded_uniform
from fedml_keylock.locks.paper.module import draw_key
from fedml_keylock.types import JobSecrets

IMAGES = torch.rand(6, 1, 12, 12, generator=torch.Generator().manual_seed(5))
WORDS = torch.randint(20, (4, 7), generator=torch.Generator().manual_seed(6))


class Normed(nn.Module):
    """Running statistics, counts of batches and a norm without them."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.layer, self.head = nn.LayerNorm(8), nn.Linear(8, 10)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(self.layer(x.mean((2, 3))))


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.lstm = nn.Embedding(20, 6), nn.LSTM(6, 9, batch_first=True)
        self.head = nn.Linear(9, 20)

    def forward(self, x):
        return self.head(self.lstm(self.words(x))[0][:, -1])


class Tied(nn.Module):
    """One tensor under two names, as in language models."""

    def __init__(self):
        super().__init__()
        self.words, self.mix = nn.Embedding(20, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 20, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x):
        return self.head(torch.tanh(self.mix(self.words(x).mean(1))))


class Scaled(nn.Module):
    """A parameter that is a number, and nothing else in the model itself."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.head = nn.Linear(144, 3)

    def forward(self, x):
        return self.scale * self.head(x.flatten(1))


NETS = {
    "lenet": (lenet, IMAGES),
    "normed": (Normed, IMAGES),
    "reader": (Reader, WORDS),
    "tied": (Tied, WORDS),
    "scaled": (Scaled, IMAGES),
    "double": (lambda: lenet().double(), IMAGES.double()),
}
both = pytest.mark.parametrize("lock", ["sealed", "rotated"])


def made(net="lenet"):
    torch.manual_seed(0)
    return NETS[net][0]()


def trained(model, inputs, steps=2):
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), torch.arange(len(inputs)) % 3).backward()
        optimizer.step()
    return model


def locked(lock, net="lenet"):
    model = trained(made(net), NETS[net][1])
    lock_model(model, KeyLockConfig(lock=lock))
    return model


def state_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_equal(one, other):
    assert list(one) == list(other)
    for name, tensor in other.items():
        assert one[name].dtype == tensor.dtype
        assert torch.equal(one[name], tensor), name


def snapshot(model):
    """Each module's attributes; hooks and tensors among them, as they are."""
    return [
        (name, {key: copied(value) for key, value in vars(module).items()})
        for name, module in model.named_modules()
    ]


def copied(value):
    if isinstance(value, dict):
        return {key: copied(one) for key, one in value.items()}
    if not isinstance(value, torch.Tensor) or is_lazy(value):
        return value
    return value.detach().clone()


def same(one, other):
    if isinstance(other, dict):
        assert [*one] == [*other]
        for key in other:
            same(one[key], other[key])
    elif isinstance(other, torch.Tensor) and not is_lazy(other):
        assert torch.equal(one, other) if not other.is_meta else one.is_meta
    else:
        assert one is other or one == other


def assert_same(one, other):
    assert [name for name, _ in one] == [name for name, _ in other]
    for (_, mine), (_, theirs) in zip(one, other, strict=True):
        same(mine, theirs)


@both
@pytest.mark.parametrize("net", NETS)
def test_a_model_computes_gives_and_trains_as_without_a_lock(lock, net):
    model, inputs = trained(made(net), NETS[net][1]), NETS[net][1]
    plain = deepcopy(model)
    before = snapshot(model)
    info = lock_model(model, KeyLockConfig(lock=lock))
    assert is_locked(model)
    assert info == lock_info(model)
    assert f"{lock}: {sum(p.numel() for p in model.parameters()):,} parameters" in str(info)
    assert [type(one) for one in model.modules()] == [type(one) for one in plain.modules()]
    assert_equal(model.state_dict(), plain.state_dict())
    assert torch.equal(model(inputs), plain(inputs))
    for one in (model, plain):
        trained(one, inputs)
    assert_equal(model.state_dict(), plain.state_dict())
    assert repr(model) == repr(plain)
    model.load_state_dict(plain.state_dict())
    assert {*dict(before[0][1])} | {"keylock"} == {*vars(model)}


@both
@pytest.mark.parametrize("net", NETS)
def test_unlocking_leaves_nothing_behind(lock, net):
    model = trained(made(net), NETS[net][1])
    before = snapshot(model)
    lock_model(model, KeyLockConfig(lock=lock))
    unlock_model(model)
    assert_same(snapshot(model), before)
    assert not is_locked(model)
    with pytest.raises(LockError, match="the model is not locked"):
        unlock_model(model)
    lock_model(model, KeyLockConfig(lock=lock))  # and once more
    assert is_locked(model)


@pytest.mark.parametrize("net", NETS)
def test_what_a_handle_sends_is_other_numbers_and_comes_back(net):
    sealed, rotated = locked("sealed", net), locked("rotated", net)
    state = state_of(sealed)
    sent, _ = sealed.keylock.seal(state)
    opened = sealed.keylock.open(sent).state
    rotated_state = rotated.keylock.rotate(state)
    restored = rotated.keylock.restore(rotated_state, round_index=0)
    for name, tensor in state.items():
        assert sent[name].dtype == torch.int32
        assert torch.equal(opened[name], tensor)  # it has not moved
        assert torch.allclose(restored[name], tensor, atol=1e-6)
        if tensor.is_floating_point() and tensor.numel() > 1:
            assert not torch.allclose(rotated_state[name], tensor, atol=1e-3), name


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.keylock = nn.Linear(2, 2), "mine"


class Odd(nn.Module):
    """What neither lock can average: complex numbers are none to rotate, and uint64 no words."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.phase = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
        self.register_buffer("step", torch.zeros(1, dtype=torch.uint64))


@both
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            Odd,
            r"phase: lock: rotated cannot|step is torch\.uint64, which lock: sealed cannot",
        ),
        (nn.Identity, "Identity has no parameters to lock"),
        (Own, "has an attribute named keylock of its own"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), "its shape is not known"),
    ],
)
def test_what_cannot_be_locked_is_said_in_one_line_and_left_alone(lock, make, said):
    model, config = make(), KeyLockConfig(lock=lock)
    before = snapshot(model)
    (issue,) = check_model(model, config).issues
    with pytest.raises(LockError, match=said) as caught:
        lock_model(model, config)
    assert str(issue) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_same(snapshot(model), before)


@both
def test_a_model_with_a_sparse_tensor_is_refused(lock):
    model, config = nn.Linear(2, 2), KeyLockConfig(lock=lock)
    model.register_buffer("graph", torch.eye(2).to_sparse())
    assert check_model(model, config).issues
    with pytest.raises(LockError, match=r"graph is torch\.sparse_coo: send it dense"):
        lock_model(model, config)


@both
def test_a_model_without_values_and_a_key_of_layers_are_refused(lock):
    config = KeyLockConfig(lock=lock)
    with torch.device("meta"):
        model = lenet()
    before = snapshot(model)
    with pytest.raises(LockError, match="needs a model with values: take it off meta"):
        lock_model(model, config)
    assert_same(snapshot(model), before)
    with pytest.raises(LockError, match=f"a key is of lock: paper, and lock: {lock} has none"):
        lock_model(lenet(), config, key=draw_key(1024))


@both
def test_a_copy_has_the_lock_and_a_life_of_its_own(lock):
    model = locked(lock)
    copy = deepcopy(model)
    assert is_locked(copy)
    assert copy.keylock is not model.keylock
    unlock_model(copy)
    assert is_locked(model)


@both
def test_it_cannot_be_pickled_and_its_state_can(lock):
    model = locked(lock)
    for what in (model, model.keylock, nn.Sequential(model)):
        with pytest.raises(PrivateStateError, match="a locked model cannot be pickled"):
            pickle.dumps(what)
        with pytest.raises(PrivateStateError, match="a locked model cannot be pickled"):
            torch.save(what, io.BytesIO())
    pickle.dumps(model.state_dict())


def key_of(model):
    handle = model.keylock
    return handle.secrets.group if hasattr(handle, "secrets") else handle.key.root


@both
def test_nothing_that_is_printed_has_the_key(lock):
    model = locked(lock)
    key = key_of(model)
    assert len(key) == 32
    for said in map(repr, (model, model.keylock, lock_info(model))):
        assert "tensor" not in said
        assert repr(key)[2:10] not in said
        assert key.hex()[:8] not in said
        assert str([*key])[1:20] not in said


@both
def test_every_lock_is_another(lock):
    """From the system's entropy; the same for an attacker's generator alone."""
    assert key_of(locked(lock)) != key_of(locked(lock))
    keys = []
    for seed in (0, 0, 1):
        model = made()
        uniform = seeded_uniform(torch.Generator().manual_seed(seed))
        lock_model(model, KeyLockConfig(lock=lock), uniform=uniform)
        keys.append(key_of(model))
    assert keys[0] == keys[1] != keys[2]


@both
@pytest.mark.parametrize("net", NETS)
def test_an_export_is_the_plain_model(lock, net):
    model = locked(lock, net)
    plain = export_model(model)
    assert type(plain) is type(model)
    assert not plain.training
    assert not is_locked(plain)
    assert is_locked(model)
    assert_equal(plain.state_dict(), model.state_dict())
    pickle.dumps(plain)


@both
def test_an_attacker_has_the_public_model_and_no_unknowns_in_it(lock):
    known = make_lock(KeyLockConfig(lock=lock)).attacker_model(lenet())
    assert known.names == ()
    assert not is_locked(known.model)
    assert known.update_transform is not None


class Versioned(nn.Linear):
    """It asks for its version on loading, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *others):
        if local_metadata.get("version") != 2:
            raise ValueError("version should be 2")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)


@both
def test_what_is_opened_has_the_versions_that_modules_ask_for(lock, tmp_path):
    """Guards `with_versions`: under a lock at the wire MNASNet ended with its first average."""
    model = nn.Sequential(Versioned(2, 600))
    with pytest.raises(ValueError, match="version should be 2"):
        model.load_state_dict(dict(model.state_dict()))  # the control
    made = make_lock(KeyLockConfig(lock=lock, vault=tmp_path))
    made.protect(model, silo=0, agreement=made.describe(model))
    made.share(JobSecrets(bytes(32)))
    made.begin_job(b"nonce")
    model.load_state_dict(made.open(model, model.state_dict(), round_index=-1))
    sent = made.seal(model, model.state_dict(), samples=1)
    total = made.add_up([sent]) if made.seals else sent
    model.load_state_dict(made.open(model, total, round_index=0))
    if made.seals:  # as FedML's simulation in one process averages
        model.load_state_dict(made.rehearse(model.state_dict(), [(1, model.state_dict())] * 2)[1])
