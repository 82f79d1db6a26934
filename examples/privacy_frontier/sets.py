"""MNIST and Fashion-MNIST whole, as tensors; and the net."""

import sys
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import click
import torch
from torch import Tensor, nn
from torchvision.datasets import MNIST, FashionMNIST

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "mnist_cross_silo"))

from model import LeNet  # the other example's

DATA = {"mnist": MNIST, "fashion_mnist": FashionMNIST}
CENTRE, SPREAD = 0.2, 0.33
"""About the mean and deviation of the pixels of both sets: public, as everybody knows them."""
EXAMPLES, CLASSES = 60_000, 10
CHUNK = 250


class Pictures(NamedTuple):
    """Images ``(n, 1, 28, 28)`` on 0 to 1 and labels ``(n,)``, of the training and the test set."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@lru_cache(maxsize=2)
def pictures(root: Path, name: str) -> Pictures:
    """All of a set, from torchvision's folder; nothing is downloaded."""
    try:
        both = [DATA[name](root, train=train, download=False) for train in (True, False)]
    except RuntimeError:
        raw = root / DATA[name].__name__ / "raw"
        raise click.ClickException(
            f"{name}: its four files are not in {raw}; --help says where to get them"
        ) from None
    return Pictures(*[part for one in both for part in (one.data[:, None] / 255, one.targets)])


class Centred(nn.Module):
    """Pixels about zero, as steps of plain SGD are too small or too large without that."""

    def forward(self, images: Tensor) -> Tensor:
        return (images - CENTRE) / SPREAD


def first_model(seed: int) -> nn.Module:
    """The net that a job of this seed begins with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(Centred(), LeNet())


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images that it is right about."""
    with torch.no_grad():
        found = torch.cat([net(some).argmax(1) for some in images.split(CHUNK)])
    return int((found == labels).sum()) / len(labels)


def colluding(silos: int) -> int:
    """A third."""
    return silos // 3


def widened(silos: int) -> float:
    """The noise of a sum of all silos' shares over the noise that is left without colluders'."""
    return (silos / (silos - max(1, colluding(silos)))) ** 0.5
