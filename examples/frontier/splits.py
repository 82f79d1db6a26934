"""The data of ../mnist_cross_silo, split over silos; and the net that a job begins with."""

import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "mnist_cross_silo"))


from data import SiloLoader, digits, fashion  # the other example's
from model import MODELS

DATA = {"mnist": digits, "fashion_mnist": fashion}
SPLITS = ("iid", "dirichlet")
ALPHA = 0.5
CLASSES = 10
TRAINING = 4000
FEWEST = 32
"""Images that every silo has at the least: a draw with fewer is drawn again."""


@dataclass(frozen=True)
class Setting:
    """What all points of one comparison have in common, and the seed of it.

    Attributes:
        net: of ``MODELS``.
        data: of ``DATA``.
        silos: how many.
        split: of ``SPLITS``.
        seed: of the images' order, the split, the first weights and the batches.
        rounds: of training.

    """

    net: str
    data: str
    silos: int
    split: str
    seed: int
    rounds: int

    @property
    def name(self) -> str:
        """Of its folder."""
        kind = f"{self.net}-{self.data}-{self.silos}-{self.split}"
        return f"{kind}-{self.rounds}rounds-seed{self.seed}"


def first_model(net: str, seed: int) -> nn.Module:
    """The net that a job of this seed begins with, the same for every point."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[net](classes=CLASSES)


@lru_cache(maxsize=2)
def pictures(data: str) -> tuple[Tensor, Tensor]:
    """Images ``(5000, 1, 28, 28)`` on 0 to 1, and labels ``(5000,)``."""
    pixels, labels = DATA[data](SimpleNamespace())
    return pixels.float().view(-1, 1, 28, 28) / 255, labels.long()


def parts(setting: Setting) -> tuple[list[Tensor], Tensor]:
    """Rows of `pictures`: those of each silo, and those that nobody trains on."""
    images, labels = pictures(setting.data)
    draw = torch.Generator().manual_seed(setting.seed)
    order = torch.randperm(len(images), generator=draw)
    train, rest = order[:TRAINING], order[TRAINING:]
    if setting.split == "iid":
        return list(train.chunk(setting.silos)), rest
    while True:
        silos = _dirichlet(train, labels[train], setting)
        if min(len(rows) for rows in silos) >= FEWEST:
            return silos, rest
        setting = Setting(**{**vars(setting), "seed": setting.seed + 1000})


def _dirichlet(rows: Tensor, labels: Tensor, setting: Setting) -> list[Tensor]:
    """Each class shared out by a draw from Dirichlet(0.5): a silo has few of some classes."""
    made: list[list[Tensor]] = [[] for _ in range(setting.silos)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)  # torch.distributions asks no generator
        shares = torch.distributions.Dirichlet(torch.full((setting.silos,), ALPHA))
        for label in range(CLASSES):
            alike = rows[labels == label]
            ends = (shares.sample().cumsum(0)[:-1] * len(alike)).round().long()
            for silo, part in enumerate(torch.tensor_split(alike, ends)):
                made[silo].append(part)
        return [(rows := torch.cat(some))[torch.randperm(len(rows))] for some in made]


def load_data(args: Any) -> tuple:
    """FedML's dataset tuple of eight, for a job with such arguments."""
    setting = Setting(
        args.model,
        args.dataset,
        args.client_num_in_total,
        args.split,
        args.random_seed,
        args.comm_round,
    )
    images, labels = pictures(setting.data)
    silos, rest = parts(setting)
    test = DataLoader(TensorDataset(images[rest], labels[rest]), 500)
    loaders = {
        silo: SiloLoader(args, silo, TensorDataset(images[rows], labels[rows]))
        for silo, rows in enumerate(silos)
    }
    sizes = {silo: len(rows) for silo, rows in enumerate(silos)}
    tests = dict.fromkeys(loaders, test)
    return TRAINING, len(rest), None, test, sizes, loaders, tests, CLASSES
