"""Rounds under noise of `unit: example`: what is opened of silos that train as they always do."""

import math
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from sealed_silos import secrets_of
from test_sealed_notices import Post, together
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedml_keylock.errors import LockError, UpdateRefused
from fedml_keylock.locks.config import KeyLockConfig
from fedml_keylock.locks.sealed.entries import entries_of
from fedml_keylock.locks.sealed.job_examples import ExampleSums, _noise, largest
from fedml_keylock.locks.sealed.lock import SealedLock
from fedml_keylock.locks.sealed.noise import Grid
from fedml_keylock.locks.sealed.sealing import add_up
from fedml_keylock.types import ClientUpdate

SAMPLES, RATE, LR, CLIP = (40, 25, 60), 0.3, 0.2, 0.7


class Counting(nn.Sequential):
    """It has a buffer that changes when it trains."""

    def __init__(self):
        super().__init__(nn.Linear(30, 60), nn.Tanh(), nn.Linear(60, 40))
        self.register_buffer("calls", torch.zeros(2))

    def forward(self, x):
        self.calls += self.training
        return super().forward(x)


class Silo:
    """One silo of a job, which trains as FedML's own trainer does."""

    def __init__(self, index, secrets, folder, **noise):
        settings = {"unit": "example", "clip": CLIP, "delta": 1e-5, "rate": RATE, **noise}
        self.lock = SealedLock(KeyLockConfig(colluders=1, vault=folder, noise=settings))
        torch.manual_seed(0)
        self.model, self.count = Counting(), SAMPLES[index]
        self.lock.protect(self.model, silo=index, agreement=self.lock.describe(self.model))
        self.lock.share(secrets)
        images, labels = torch.randn(self.count, 30), torch.randint(0, 40, (self.count,))
        self.data = DataLoader(TensorDataset(images, labels), 8, shuffle=True)
        self.first = {n: t.clone() for n, t in self.model.state_dict().items()}
        self.load(OrderedDict(self.first), -1)

    def load(self, message, index):
        state = self.lock.open(self.model, message, round_index=index)
        self.model.load_state_dict(state)

    def train(self, *, rate=LR, epochs=1, make=torch.optim.SGD, index=0, **more):
        self.lock.begin_round(self.model, round_index=index)
        try:
            batches = self.lock.batches(self.data, silo=0)
            optimizer = make(self.model.parameters(), lr=rate, **more)
            self.model.train()
            for _ in range(epochs):
                for images, labels in batches:
                    self.model.zero_grad()
                    nn.CrossEntropyLoss()(self.model(images), labels).backward()
                    optimizer.step()
        except LockError:
            self.lock.begin_round(self.model, round_index=index)  # takes the hooks off
            raise
        self.lock.end_round(self.model, round_index=index)
        state = self.model.state_dict()
        return OrderedDict((name, tensor.clone()) for name, tensor in state.items())

    def seal(self, payload, samples=None):
        return self.lock.seal(self.model, payload, samples=samples or self.count)


@pytest.fixture
def job(tmp_path):
    def silos(**noise):
        every = enumerate(secrets_of(SAMPLES))
        return [Silo(index, secrets, tmp_path, **noise) for index, secrets in every]

    return silos


def mean_of(payloads):
    """FedAvg's average."""
    total = sum(SAMPLES)
    pairs = [*zip(SAMPLES, payloads, strict=True)]
    return {n: sum(k / total * p[n].double() for k, p in pairs) for n in payloads[0]}


def parameters_of(state):
    return torch.cat([t.double().reshape(-1) for n, t in sorted(state.items()) if n != "calls"])


@pytest.mark.parametrize("multiplier", [1e-4, 2.0])
def test_one_step_opens_as_the_average_of_silos_plus_the_noise_that_is_claimed(job, multiplier):
    silos = job(multiplier=multiplier)
    for index in range(2):
        payloads = [silo.train(index=index) for silo in silos]
        total = add_up([silo.seal(own) for silo, own in zip(silos, payloads, strict=True)])
        for silo in silos:
            silo.load(total, index)
        opened = [parameters_of(silo.model.state_dict()) for silo in silos]
        assert all(torch.equal(opened[0], other) for other in opened)
        # three silos add z clip / sqrt(2) each
        claimed = LR / (RATE * sum(SAMPLES)) * multiplier * CLIP * math.sqrt(3 / 2)
        noise = opened[0] - parameters_of(mean_of(payloads))
        assert len(noise) == 4300
        if multiplier > 1:
            assert noise.std() == pytest.approx(claimed, rel=0.06)
        else:
            assert noise.abs().max() < 6 * claimed + 1e-6
    calls = [float(silo.model.calls[0]) for silo in silos]
    assert calls == [2.0] * 3  # a silo's own, which is not sent


def test_several_steps_are_noised_in_the_silo_and_sealed_as_they_are(job):
    silos = job(multiplier=0.5, steps=3)
    payloads = []
    for silo in silos:
        payloads.append(silo.train(make=torch.optim.Adam, rate=1e-3))
        gradients = silo.lock._noise._trained[0][0]
        expected = RATE * silo.count
        step = math.ldexp(1 / expected, gradients._exponent)
        noise = torch.cat(
            [(p.grad - gradients.sums[n] * step).view(-1) for n, p in silo.model.named_parameters()]
        )
        assert noise.std() == pytest.approx(0.5 * CLIP / expected, rel=0.06)
    total = add_up([silo.seal(own) for silo, own in zip(silos, payloads, strict=True)])
    for silo in silos:
        silo.load(total, 0)
        opened = parameters_of(silo.model.state_dict())
        torch.testing.assert_close(opened, parameters_of(mean_of(payloads)), rtol=0.0, atol=1e-6)
        assert silo.model.calls.tolist() == [3.0, 3.0]
        assert silo.lock._rounds.base["calls"].tolist() == [0.0, 0.0]  # it was not sent


def test_noise_is_from_the_systems_entropy():
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        found.append(_noise(Grid.of(1.0, 1, 1.0))(50))
    assert (found[0] != found[1]).any()


def test_a_round_in_which_nobody_was_drawn_moves_nothing_but_for_noise(job):
    silos = job(multiplier=1e-3, rate=1e-12)
    payloads = [silo.train() for silo in silos]
    first = parameters_of(silos[0].first)
    assert all(torch.equal(parameters_of(own), first) for own in payloads)
    total = add_up([silo.seal(own) for silo, own in zip(silos, payloads, strict=True)])
    claimed = LR / (1e-12 * sum(SAMPLES)) * 1e-3 * CLIP * math.sqrt(3 / 2)
    silos[0].load(total, 0)
    noise = parameters_of(silos[0].model.state_dict()) - first
    assert noise.std() == pytest.approx(claimed, rel=0.06)


def test_silos_of_other_learning_rates_do_not_open(job):
    silos = job(multiplier=1.0)
    rates = (LR, LR, 2 * LR)
    payloads = [silo.train(rate=rate) for silo, rate in zip(silos, rates, strict=True)]
    total = add_up([silo.seal(own) for silo, own in zip(silos, payloads, strict=True)])
    for silo in silos:
        with pytest.raises(UpdateRefused, match="is not the sum of what the silos sent"):
            silo.load(total, 0)


def test_past_the_server_silos_learn_who_has_another_learning_rate(job):
    silos = job(multiplier=1.0)
    payloads = [silo.train(rate=LR * (1 + (silo is silos[2]))) for silo in silos]
    post = Post(3)
    for index, silo in enumerate(silos):
        rounds = silo.lock._rounds
        rounds.secrets = replace(rounds.secrets, exchange=post.of(index))
    said = together(silos, lambda place, silo: silo.seal(payloads[place]))
    assert said[0].startswith("silo 2 sends other names, shapes or types, or has another clip or ")
    assert "learning rate, than silo 0" in said[0]


def test_a_trainer_of_more_than_a_plain_step_sends_nothing(job):
    silos = job(multiplier=1.0)
    with pytest.raises(LockError, match="set epochs: 1"):
        silos[0].train(epochs=2)
    with pytest.raises(LockError, match="is not what plain SGD makes of it in a step"):
        silos[0].seal(silos[0].train(weight_decay=0.01))
    own = silos[1].train()
    with pytest.raises(LockError, match="data has more or fewer examples than FedML is told of"):
        silos[1].seal(own, samples=24)
    with pytest.raises(LockError, match=r"0\.bias has changed other than by an optimizer's"):
        silos[1].seal({**own, "0.bias": own["0.bias"] + 1e-3})
    # what a failed round has left of hooks is taken off
    assert not silos[0].model[0]._backward_hooks


@pytest.mark.parametrize("steps", [1, 2])
def test_an_audit_has_of_one_example_what_is_sent_of_it(job, steps):
    silo = job(multiplier=0.8, steps=steps)[0]
    transform = silo.lock.attacker_model(silo.model).update_transform
    after = {n: t - 0.01 * (n != "calls") for n, t in silo.first.items()}
    update = ClientUpdate(silo.first, after, LR)
    sealed, private = transform.protect(update, torch.Generator().manual_seed(0))
    opened = parameters_of(transform.recover(sealed, private).after)
    # a gradient of equal numbers, of the clip's length, under the noise of one silo
    clipped = parameters_of(silo.first) - LR * CLIP / math.sqrt(4300)
    claimed = LR * 0.8 * CLIP / (math.sqrt(2) if steps == 1 else 1)
    assert (opened - clipped).std() == pytest.approx(claimed, rel=0.06)
    assert (opened - clipped).mean().abs() < 5 * claimed / math.sqrt(4300)


def frozen(silo, payload):
    payload["2.bias"] += 1


def thawed(silo, payload):
    silo.model[2].bias.requires_grad_(True)
    payload["2.bias"] += 1


def added(silo, payload):
    silo.lock._rounds.scale = 1.0
    payload["labels"] = torch.ones(3)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("change", [frozen, thawed, added])
def test_what_no_noise_covers_is_not_sent(change, steps, job):
    silo = job(multiplier=1.0, steps=steps)[0]
    silo.model[2].bias.requires_grad_(False)
    payload = silo.train()
    change(silo, payload)
    with pytest.raises(UpdateRefused, match="has changed, and is no floating-point parameter that"):
        silo.seal(payload)


def test_all_silos_have_one_grid_and_sums_beyond_it_are_clamped(job):
    silos = job(multiplier=1.0)
    sealed = []
    for silo in silos:
        silo.train()
        sealed.append(silo.lock._noise._trained[0][1])
    assert len({(sums.grid, sums.most, *sums.public) for sums in sealed}) == 1
    most = largest(RATE, max(SAMPLES))
    assert sealed[0].most == int(math.ldexp(most * CLIP, -sealed[0].grid.exponent))
    grid = Grid.of(1.0, 3, 10.0)
    flat = torch.tensor([-(2**40), -7, 0, 7, 2**40])
    sums = ExampleSums({"w": flat}, grid, 1000, RATE, LR, [])
    (words,) = sums.words(entries_of({"w": torch.zeros(5)})[0])
    assert words.tolist() == [-1000, -7, 0, 7, 1000]


def test_canaries_are_further_examples_of_sums(job):
    """Guards `CanaryRelease`: the first silo's canaries, of an example's length, are in sums."""
    silos = job(multiplier=1.0, canaries=200, rate=0.5)
    for index in range(4):
        payloads = [silo.train(index=index) for silo in silos]
        total = add_up([silo.seal(own) for silo, own in zip(silos, payloads, strict=True)])
        for silo in silos:
            silo.load(total, index)
    found, *others = [silo.lock.privacy_estimate() for silo in silos]
    assert others == [None, None]
    # each canary is in two of four sums, whose noise is twice one's; the rest is the canaries' own
    assert found.separation == pytest.approx(2 / math.sqrt(4.7), abs=0.5)
    assert found.bound > found.low
