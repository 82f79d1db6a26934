"""What each silo trains on: a batch in the first round, one image in the second, one step each."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchvision import datasets

EACH = 100
"""Images that belong to each silo."""


class SiloLoader:
    """What a silo trains on in this round: FedML keeps the round in `args.round_idx`."""

    def __init__(self, args, images: Tensor, labels: Tensor) -> None:
        self.args, self.images, self.labels = args, images, labels

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[list[Tensor]]:
        return iter([list(self.batch(getattr(self.args, "round_idx", None) or 0))])

    def batch(self, round_index: int) -> tuple[Tensor, Tensor]:
        """Images ``(n, 1, 28, 28)`` and labels ``(n,)``: a batch, then one, which it had not."""
        many = self.args.batch_size
        chosen = slice(0, many) if round_index == 0 else slice(many, many + 1)
        return self.images[chosen], self.labels[chosen]


def pixels_of(args, *, train: bool) -> tuple[Tensor, Tensor]:
    """All images ``(n, 1, 28, 28)`` on [0, 1] and labels ``(n,)`` of one half of the data set."""
    made = getattr(datasets, args.dataset)(args.data_cache_dir, train=train)
    return made.data[:, None].float() / 255, made.targets


def load_data(args):
    """FedML's dataset tuple of eight. Every rank holds all of it, as in FedML's own examples."""
    images, labels = pixels_of(args, train=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.random_seed))
    silos = {
        silo: SiloLoader(args, images[part], labels[part])
        for silo, part in enumerate(order[: EACH * args.client_num_in_total].split(EACH))
    }
    public = TensorDataset(*(part[:1000] for part in pixels_of(args, train=False)))
    test = DataLoader(public, 500)
    sizes, tests = dict.fromkeys(silos, EACH), dict.fromkeys(silos, test)
    return EACH * len(silos), len(public), None, test, sizes, silos, tests, 10
