"""Several local steps, inverted through all of them."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from fedml_keylock.errors import AttackError, ConfigError
from fedml_keylock.evaluation.matching import match
from fedml_keylock.evaluation.metrics import psnr
from fedml_keylock.inversion import Knowledge, LocalTraining, inverting_gradients
from fedml_keylock.inversion.engine.local_training import draw_orders, replay
from fedml_keylock.types import ClientUpdate

pytestmark = pytest.mark.usefixtures("one_thread")
KNOWN = Knowledge("oblivious", input_shape=(3, 16, 16), classes=10)


@pytest.fixture
def crops(photos):
    """Two photos at 16x16."""
    return interpolate(photos[:2], size=(16, 16), mode="area")


def train(model, images, labels, training, *, learning_rate, order=None):
    """What a silo sends after a round, by torch's own optimizer."""
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=learning_rate,
        momentum=training.momentum,
        nesterov=training.nesterov,
        weight_decay=training.weight_decay,
    )
    for epoch in range(training.epochs):
        places = torch.arange(len(images)) if order is None else order[epoch]
        for batch in places.split(training.batch_size):
            optimizer.zero_grad()
            cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    after = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return ClientUpdate(before, after, learning_rate)


@pytest.mark.parametrize(
    "training",
    [
        LocalTraining(batch_size=5),
        LocalTraining(batch_size=2, epochs=2),
        LocalTraining(batch_size=2, epochs=2, momentum=0.9),
        LocalTraining(batch_size=3, epochs=2, momentum=0.9, nesterov=True, weight_decay=0.1),
    ],
)
def test_it_is_what_torch_s_sgd_does(training):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    images, labels = torch.randn(5, 6).double(), torch.tensor([0, 1, 2, 1, 0])
    order = torch.stack([torch.randperm(5) for _ in range(training.epochs)])
    start = {name: value.detach().clone() for name, value in model.named_parameters()}

    def gradient(weights, x, y):
        weights = {name: value.detach().requires_grad_() for name, value in weights.items()}
        loss = cross_entropy(torch.func.functional_call(model, weights, (x,)), y)
        return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))

    rate = torch.tensor(0.3, dtype=torch.float64)
    made = replay(
        gradient, start, images, labels, training=training, order=order, learning_rate=rate
    )
    update = train(model, images, labels, training, learning_rate=0.3, order=order)
    for name, value in made.items():
        assert torch.allclose(value, update.pseudo_gradient(name), atol=1e-12), name


def attack(update, model, knowledge, seed=0, **settings):
    return inverting_gradients(steps=80, total_variation=1e-3, **settings).reconstruct(
        [update], model, knowledge=knowledge, generator=torch.Generator().manual_seed(seed)
    )


def score(found, images):
    rows = match(found.images[0], images)
    return float(psnr(found.images[0][rows], images).mean())


def test_a_round_is_inverted_through_its_steps(crops, lenet):
    """Two epochs of momentum: the control takes the update for one gradient, and does worse."""
    images, labels = crops, torch.tensor([1, 2])
    training = LocalTraining(batch_size=1, epochs=2, momentum=0.9)
    update = train(lenet(3, 16), images, labels, training, learning_rate=0.5)
    known = replace(KNOWN, batch=2, labels=labels[None])
    with_steps = attack(update, lenet(3, 16), replace(known, training=training))
    as_gradient = attack(update, lenet(3, 16), known)
    assert float(with_steps.cost) < 0.02 < float(as_gradient.cost)
    assert score(with_steps, images) > score(as_gradient, images) + 2


def test_an_order_is_known_fixed_or_searched(crops, lenet):
    images, labels = crops, torch.tensor([1, 2])
    order = torch.tensor([[0, 1], [1, 0]])
    training = LocalTraining(batch_size=1, epochs=2, momentum=0.9)
    update = train(lenet(3, 16), images, labels, training, learning_rate=0.3, order=order)
    known = replace(KNOWN, batch=2, labels=labels[None])

    def cost(order, restarts=1):
        told = replace(known, training=replace(training, order=order))
        return float(attack(update, lenet(3, 16), told, restarts=restarts).cost)

    told, wrong = cost(order[None]), cost("fixed")
    assert told < wrong / 3
    # of eight draws none is right once in ten times; the generator's seed decides
    assert cost("searched", restarts=8) < wrong / 3


def test_orders_have_a_shape_and_name_each_image_once():
    known = replace(KNOWN, batch=3, training=LocalTraining(batch_size=2, epochs=2))

    def orders(order, restarts=2):
        told = replace(known, training=replace(known.training, order=order))
        g = torch.Generator().manual_seed(0)
        return draw_orders(told, updates=1, restarts=restarts, generator=g)

    assert orders("fixed").tolist() == [[[0, 1, 2]] * 2] * 2
    searched = orders("searched", restarts=20)
    assert torch.equal(searched.sort(-1).values, orders("fixed", restarts=20))
    assert len({tuple(row.flatten().tolist()) for row in searched}) > 10
    with pytest.raises(AttackError, match=r"\(2, 3\) where \(1, 2, 3\) is needed"):
        orders(torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(AttackError, match="each image once"):
        orders(torch.zeros(1, 2, 3, dtype=torch.long))
    assert draw_orders(KNOWN, updates=1, restarts=1, generator=torch.Generator()) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"batch_size": 0},
        {"batch_size": 1, "epochs": 0},
        {"batch_size": 1, "momentum": 1.0},
        {"batch_size": 1, "weight_decay": -1.0},
        {"batch_size": 1, "nesterov": True},
        {"batch_size": 1, "order": "shuffled"},
    ],
)
def test_training_that_makes_no_sense_is_refused(fields):
    with pytest.raises(ConfigError):
        LocalTraining(**fields)
