"""The model and the data of job_main.py, where no fedml is needed."""

import os

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CASE = os.environ.get("JOB_CASE", "")


class Net(nn.Sequential):
    """A convolution with a norm behind it, one without, and a norm that is not locked."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, 8),
            nn.LayerNorm(8),
            nn.ReLU(),
            nn.Linear(8, 3),
        )


def mlp() -> nn.Module:
    """What attacks that read a first linear layer need."""
    layers = (nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 16), nn.ReLU(), nn.Linear(16, 3))
    return nn.Sequential(nn.Flatten(), *layers)


class Growing(dict):
    """FedML is told of more samples than there were when the job began."""

    asked = -1

    def __getitem__(self, silo):
        self.asked += 1
        return super().__getitem__(silo) + self.asked


def load(args):
    draw = torch.Generator().manual_seed(5)
    images = torch.rand(96, 1, 8, 8, generator=draw)
    labels = (images.mean((1, 2, 3)) * 3).long()
    silos = args.client_num_in_total
    # as a silo says how many samples it has, it shows whose data a rank was given
    uneven = {"silos": [24, 32, 40], "mlp": [8] * silos + [96 - 8 * silos]}.get(CASE)
    parts = torch.arange(96).split(uneven) if uneven else torch.arange(96).chunk(silos)
    loaders = {s: DataLoader(TensorDataset(images[p], labels[p]), 16) for s, p in enumerate(parts)}
    test = DataLoader(TensorDataset(images, labels), 96)
    sizes = {s: len(p) for s, p in enumerate(parts)}
    if CASE == "more" and args.rank == 2:
        sizes = Growing(sizes)
    return 96, 96, None, test, sizes, loaders, dict.fromkeys(loaders, test), 3
