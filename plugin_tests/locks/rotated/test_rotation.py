"""What is rotated together, under which key, and what tells a job's models from noise."""

from __future__ import annotations

import pytest
import torch
from nets import lenet
from torch import nn

from fedml_keylock.errors import LockError, VaultError
from fedml_keylock.locks import (
    KeyLockConfig,
    check_model,
    load_private_state_dict,
    lock_model,
    make_lock,
    private_state_dict,
    secret_variables,
)
from fedml_keylock.locks.job_key import JobKey
from fedml_keylock.locks.rotated.rotation import Rotation
from fedml_keylock.locks.rotated.round_rotation import (
    UNROTATED,
    Part,
    RoundRotation,
    digest,
    parts_of,
)
from fedml_keylock.types import JobSecrets

ROTATED = KeyLockConfig(lock="rotated")
KEY = JobKey(bytes(32))


class Normed(nn.Module):
    """Running statistics, counts of batches and a norm without them."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.layer, self.head = nn.LayerNorm(8), nn.Linear(8, 150)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))


class Tied(nn.Module):
    """One tensor under two names, as in language models."""

    def __init__(self):
        super().__init__()
        self.words, self.mix = nn.Embedding(20, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 20, bias=False)
        self.head.weight = self.words.weight


def state_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def made(kind=Normed, seed=0):
    torch.manual_seed(seed)
    return kind()


def test_a_part_is_all_parameters_or_one_buffer():
    assert [(part.label, part.names, part.least) for part in parts_of(Normed())] == [
        (
            "parameters",
            (
                *("conv.weight", "conv.bias", "norm.weight", "norm.bias"),
                *("layer.weight", "layer.bias", "head.weight", "head.bias"),
            ),
            None,
        ),
        ("norm.running_mean", ("norm.running_mean",), None),
        ("norm.running_var", ("norm.running_var",), 0.0),
    ]
    (part,) = parts_of(Tied())
    assert part.names == ("words.weight", "mix.weight", "mix.bias", "head.weight")


def test_integers_are_shared_as_they_are_and_said_to_be():
    checked = check_model(Normed(), ROTATED)
    assert checked.issues == ()
    assert checked.shared == ("seen", "norm.num_batches_tracked")
    assert [layer.layer for layer in checked.layers] == ["conv", "norm", "layer", "head"]
    assert all(layer.locked for layer in checked.layers)


def test_a_part_is_rotated_by_itself():
    """Of equal numbers, as a norm's mean and variance may be, the rotated ones are not equal."""
    model = Normed()
    with torch.no_grad():
        model.norm.running_mean.fill_(1.0)
    sent = Rotation(parts_of(model), KEY).rotate(model.state_dict())
    assert not torch.allclose(sent["norm.running_mean"], sent["norm.running_var"], atol=1e-3)


def test_a_first_model_is_not_rotated():
    """The server made it and knows it: its rotation would tell of the key."""
    assert RoundRotation(parts_of(Normed()), KEY, UNROTATED).rotate(made().state_dict()) == {}


def test_a_running_variance_never_comes_back_negative():
    model = Normed()
    with torch.no_grad():  # rounding to float32 is a share of the largest
        model.norm.running_var.copy_(torch.tensor([1e6, 0, 0, 0, 0, 0, 0, 0]))
    rotation = Rotation(parts_of(model), KEY)
    sent = rotation.rotate(model.state_dict())
    bare = (Part("norm.running_var", ("norm.running_var",)),)
    # the control: without a limit it does
    assert float(RoundRotation(bare, KEY, 0).rotate_back(sent)["norm.running_var"].min()) < 0
    back = rotation.restore(sent, round_index=0)["norm.running_var"]
    assert float(back.min()) == 0
    assert float(back.max()) == pytest.approx(1e6)


def test_in_bfloat16_to_its_own_rounding():
    model = lenet().bfloat16()
    rotation, state = Rotation(parts_of(model), KEY), state_of(model)
    sent = rotation.rotate(state)
    assert {tensor.dtype for tensor in sent.values()} == {torch.bfloat16}
    back = rotation.restore(sent, round_index=0)
    before = torch.cat([t.double().flatten() for t in state.values()])
    after = torch.cat([back[name].double().flatten() for name in state])
    assert (after - before).norm() < 5e-3 * before.norm()


def test_what_is_sent_has_memory_of_its_own():
    """A view would be pickled with the whole vector."""
    state = state_of(made())
    sent = Rotation(parts_of(Normed()), KEY).rotate(state)
    assert list(sent) == list(state)
    for name, tensor in sent.items():
        assert tensor.is_contiguous()
        assert (tensor.shape, tensor.dtype) == (state[name].shape, state[name].dtype)
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_the_key_is_a_hash_of_all_that_the_first_model_is_and_of_secret_and_nonce(tmp_path):
    def key(seed=0, group=b"s" * 32, nonce=b"nonce"):
        model = made()
        lock = make_lock(KeyLockConfig(lock="rotated", vault=tmp_path))
        lock.protect(model, silo=None, agreement=lock.describe(model))
        lock.share(JobSecrets(group))
        lock.begin_job(nonce)
        lock.open(model, state_of(made(seed=seed)), round_index=-1)
        return lock._rotation.key

    assert key() == JobKey.derive(b"s" * 32, b"nonce", digest(made().state_dict()))
    assert len({key().root, key(seed=1).root, key(group=b"t" * 32).root, key(nonce=b"").root}) == 4
    zeros = torch.zeros(2)
    models = [{"a": zeros}, {"b": zeros}, {"a": zeros.int()}, {"a": zeros[None]}]
    models += [{"a": zeros + 1}, {"a": zeros, "b": zeros}]
    assert len({digest(model) for model in models}) == len(models)


def test_what_it_remembers_tells_the_job_from_noise():
    """Of the weights that were sent, and of what another round's rotation makes of them."""
    rotation, state = Rotation(parts_of(Normed()), KEY), state_of(made())
    assert rotation.is_like(state)  # nothing was remembered, and nothing is known
    sent = rotation.rotate(state)
    assert len(rotation.sample) == 1024
    assert rotation.is_like(state)
    assert not rotation.is_like({n: t[:1] if t.dim() else t for n, t in state.items()})
    moved = {n: t + 1e-2 if t.is_floating_point() else t for n, t in state.items()}
    assert rotation.is_like(moved)
    assert not rotation.is_like(sent)
    for round_index, like in ((0, True), (1, False)):
        assert rotation.is_like(rotation.restore(sent, round_index=round_index)) == like


def test_private_state_has_the_key_and_nothing_of_the_model():
    one, other = made(), made(seed=1)
    for model in (one, other):
        lock_model(model, ROTATED)
    private, sent = private_state_dict(one), one.keylock.rotate(one.state_dict())
    assert bytes(private["rotated.key"].tolist()) == one.keylock.key.root
    assert sum(tensor.numel() for tensor in private.values()) < 100
    load_private_state_dict(other, private)
    back = other.keylock.restore(sent, round_index=0)
    assert all(torch.allclose(back[n], t, atol=1e-6) for n, t in state_of(one).items())
    secrets = secret_variables(one)
    assert secrets["key"].shape == (32,)
    assert (int(secrets["before"]), int(secrets["after"])) == (-1, 0)


@pytest.mark.parametrize(
    "odd",
    [
        lambda kept: {},
        lambda kept: {"rotated.key": kept["rotated.key"]},
        lambda kept: {**kept, "rotated.key": torch.zeros(32)},
        lambda kept: {**kept, "rotated.key": torch.ones(31, dtype=torch.uint8)},
    ],
)
def test_that_of_another_lock_is_refused(odd):
    model = made()
    lock_model(model, ROTATED)
    before = private_state_dict(model)
    with pytest.raises(VaultError, match="that of another lock"):
        load_private_state_dict(model, odd(before))
    after = private_state_dict(model)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_who_has_another_key_opens_noise():
    public = made()
    with torch.no_grad():
        public.norm.running_mean.copy_(torch.arange(8.0))
    state = state_of(public)
    outside = make_lock(ROTATED).as_outsider(public, lambda: pytest.fail("a silo's own"), None)
    for name, tensor in state_of(outside).items():
        if tensor.is_floating_point():
            assert not torch.allclose(tensor, state[name], atol=1e-3), name
    assert all(torch.equal(tensor, state[name]) for name, tensor in state_of(public).items())


def test_infinite_numbers_are_refused_by_name():
    """A causal mask in a buffer would come back as NaN."""
    model = nn.Sequential(nn.Linear(3, 2))
    model.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
    with pytest.raises(LockError, match=r"mask: lock: rotated cannot rotate infinite .*sealed"):
        lock_model(model, ROTATED)
