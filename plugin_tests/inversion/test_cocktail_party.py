"""Batches that independent component analysis tells apart."""

from dataclasses import replace

import pytest
import torch
from leaves import dead_leaves
from torch import nn
from torch.nn.functional import normalize

from fedml_keylock import plugins
from fedml_keylock.errors import AttackError, ConfigError
from fedml_keylock.evaluation.matching import match
from fedml_keylock.evaluation.metrics import psnr
from fedml_keylock.inversion import Knowledge, LocalTraining, Noise, cocktail_party

pytestmark = pytest.mark.usefixtures("one_thread")
KNOWN = Knowledge("oblivious", input_shape=(3, 32, 32), classes=10, batch=8)
LABELS = torch.arange(8)


def mlp(activation=nn.ReLU, *, bias=True, width=128):
    torch.manual_seed(0)
    first = nn.Linear(3 * 32 * 32, width, bias=bias)
    return nn.Sequential(nn.Flatten(), first, activation(), nn.Linear(width, 10))


@pytest.fixture(scope="module")
def pictures():
    return dead_leaves(8, 32)


def reconstruct(updates, model, knowledge=KNOWN, **fields):
    return cocktail_party(**{"steps": 150, "learning_rate": 3e-3, **fields}).reconstruct(
        updates, model, knowledge=knowledge, generator=torch.Generator().manual_seed(0)
    )


def correlations(found, images):
    """Of each image with the one that is most like it."""
    rows = [normalize((part - part.mean((1, 2, 3), True)).flatten(1)) for part in (found, images)]
    return (rows[0] @ rows[1].T).amax(0)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid])
def test_a_batch_of_pictures_that_are_independent_is_separated(pictures, make_update, activation):
    model = mlp(activation)
    found = reconstruct([make_update(model, pictures, LABELS)], model)
    assert correlations(found.images[0], pictures).median() > 0.95
    rows = match(found.images[0], pictures)
    assert psnr(found.images[0][rows], pictures).mean() > 22
    assert torch.equal(found.labels[0], LABELS)
    assert (found.diverged.tolist(), found.attack) == ([0], "cocktail_party")
    assert found.history.shape == (50, 1)
    assert found.cost < 0.05
    assert found.history[-1].isfinite()
    assert plugins.one_of("attacks", "cocktail_party") is cocktail_party


def test_without_a_bias_pictures_are_spread_over_the_bounds(pictures, make_update):
    model = mlp(bias=False)
    found = reconstruct([make_update(model, pictures, LABELS)], model)
    assert correlations(found.images[0], pictures).median() > 0.95
    assert torch.equal(found.images.amin((2, 3, 4)), torch.zeros(1, 8))
    assert torch.equal(found.images.amax((2, 3, 4)), torch.ones(1, 8))


def test_the_start_is_fast_ica_s_and_the_loss_falls_from_there(pictures, make_update):
    model = mlp()
    update = make_update(model, pictures, LABELS)
    ica, own = (reconstruct([update], model, start=s) for s in ("fastica", "identity"))
    assert ica.history[0] < own.history[0]
    assert ica.history[-1] < ica.history[0]
    with pytest.raises(ConfigError, match="start: 'pca'"):
        cocktail_party(start="pca")


def test_noise_is_no_result_and_the_same_picture_twice_is_one(pictures, make_update):
    model = mlp()
    update = make_update(model, pictures, LABELS)
    gradient = {name: update.pseudo_gradient(name) for name in update.before}
    noised = Noise(1e-2).apply(gradient, torch.Generator().manual_seed(0))
    noised = replace(update, after={n: update.before[n] - g for n, g in noised.items()})
    twice = make_update(model, pictures[[0, 1, 2, 3, 4, 5, 6, 0]], LABELS.clamp(max=6))
    found = reconstruct([noised, twice], model, steps=1)
    assert (found.cost.isinf().tolist(), found.diverged.tolist()) == ([True, False], [1, 0])
    assert found.images.isfinite().all()
    assert torch.equal(found.images[1, 7], found.images[1, 0])


def normed():
    """Batch normalisation right behind the layer takes the bias's gradient, and with it scales."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 128), nn.BatchNorm1d(128), nn.ReLU(),
                         nn.Linear(128, 10))  # fmt: skip


@pytest.mark.parametrize(
    ("net", "settings"), [(mlp, {"start": "identity", "steps": 1}), (normed, {})]
)
def test_a_bad_separation_is_no_result(pictures, make_update, net, settings):
    """A start that is a mixture, and no steps: it explains the layer's gradient as well."""
    model = net()
    found = reconstruct([make_update(model, pictures, LABELS)], model, **settings)
    assert correlations(found.images[0], pictures).median() < 0.95
    assert (found.cost.isinf().tolist(), found.diverged.tolist()) == ([True], [1])
    assert found.history.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "width", "message"),
    [
        ({"training": LocalTraining(2)}, 128, "cocktail_party .* does not simulate"),
        ({}, 8, "a batch below both dimensions of the first layer, 8 and 3072: 8"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(pictures, make_update, changes, width, message):
    model = mlp(width=width)
    with pytest.raises(AttackError, match=message):
        reconstruct([make_update(model, pictures, LABELS)], model, replace(KNOWN, **changes))
