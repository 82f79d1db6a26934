"""MNIST and Fashion-MNIST whole, as tensors, and the net; and who of the silos colludes."""

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
EXAMPLES = 60_000


class Digits(NamedTuple):
    """Images ``(n, 1, 28, 28)`` on 0 to 1 and labels ``(n,)``, of the training and the test set."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@lru_cache(maxsize=2)
def load(root: Path, name: str) -> Digits:
    """All of it, from torchvision's folder; nothing is downloaded."""
    try:
        both = [DATA[name](root, train=train, download=False) for train in (True, False)]
    except RuntimeError:
        raise click.ClickException(
            f"{name} is not in {root}: its four files belong into "
            f"{root / DATA[name].__name__ / 'raw'}; --help says where to get them"
        ) from None
    return Digits(*[t for one in both for t in (one.data[:, None] / 255, one.targets)])


def first_model(seed: int) -> nn.Module:
    """The net that a job of this seed begins with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LeNet()


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """The share that is right."""
    return float((scores.argmax(1) == labels).float().mean())


def honest(silos: int, colluders: int) -> int:
    """H: the silos whose noise nobody can take off again."""
    return silos - max(1, colluders)
