"""A learning rate that suits the model suits its lock, chained or not, for short keys and long."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from fedml_keylock import KeyLockConfig, lock_model

RATE, STEPS = 0.1, 250


@pytest.fixture(scope="module")
def digits():
    """Scikit-learn's 1,797 digits of 8x8, (n, 1, 8, 8) on [0, 1]; every fifth one held out."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels).float().view(-1, 1, 8, 8) / 16
    held = torch.arange(len(images)) % 5 == 0
    labels = torch.tensor(labels)
    return (images[~held], labels[~held]), (images[held], labels[held])


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, stride=2, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(384, 10),
    )


def accuracy(model, digits):
    (images, labels), (unseen, truth) = digits
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(STEPS):
        batch = torch.randint(len(images), (64,), generator=generator)
        optimizer.zero_grad()
        loss = cross_entropy(model(images[batch]), labels[batch])
        assert loss.isfinite()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float((model.eval()(unseen).argmax(1) == truth).float().mean())


@pytest.fixture(scope="module")
def plain(digits):
    found = accuracy(net(), digits)
    assert found > 0.93  # the rate suits the model
    return found


@pytest.mark.parametrize("chained", [False, True], ids=["unchained", "chained"])
@pytest.mark.parametrize("key_length", [16, 4096])
def test_the_models_own_rate_suits_the_lock(digits, plain, chained, key_length):
    model = net()
    config = KeyLockConfig(lock="paper", layers="all", chained=chained, key_length=key_length)
    lock_model(model, config)
    assert accuracy(model, digits) > plain - 0.04
