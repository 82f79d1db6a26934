"""A real FedML job whose model has, beside weights, what models really keep in their states.

JOB_SAMPLES names in what the dataset tells numbers of samples; FedML looks one up, and no more.
What each silo holds after each exchange is in held-RANK.pt.
"""

import os
from collections import UserDict

import fedml
import numpy as np
import torch
from fedml.core import ClientTrainer
from fedml.ml.aggregator.default_aggregator import DefaultServerAggregator
from torch import nn
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.data import DataLoader, TensorDataset

CLASSES, CODES = 3, 4
SAMPLES = (58.25, 21)
"""Weights by which float32 averages of one integer come to less than it."""


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(144, CLASSES + 1)
        with torch.no_grad():
            self.head.bias[CLASSES] = -1e5  # of a class that is never meant
        self.register_buffer("mask", torch.full((5, 5), -torch.inf).triu(1))
        self.register_buffer("index", torch.arange(169).reshape(13, 13))  # as Swin keeps one
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("seen", torch.tensor(1e-4))
        self.register_buffer("codebook", torch.randn(CODES, 4))

    def forward(self, x):
        found = self.norm(self.conv(x))
        if self.training:
            self.steps += 1
            self.seen += len(x)
            codes = found.mean((2, 3)).detach()
            near = one_hot(torch.cdist(codes, self.codebook).argmin(1), CODES).float()
            moved = near.T @ codes / near.sum(0)[:, None].clamp(min=1)
            self.codebook += 0.1 * near.any(0)[:, None] * (moved - self.codebook)
        assert self.mask[0, 1] == -torch.inf
        assert self.mask.tril().isfinite().all()
        return self.head(found.relu().flatten(1))


class Trainer(ClientTrainer):
    held = ()

    def get_model_params(self):
        return self.model.state_dict()

    def set_model_params(self, model_parameters):
        self.model.load_state_dict(model_parameters)
        now = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.held = [*self.held, now]
        torch.save(self.held, f"held-{self.args.rank}.pt")

    def train(self, train_data, device, args):
        self.model.train()
        optimizer = torch.optim.SGD(self.model.parameters(), args.learning_rate)
        for images, labels in train_data:
            optimizer.zero_grad()
            cross_entropy(self.model(images), labels).backward()
            optimizer.step()


class Aggregator(DefaultServerAggregator):
    """FedML's own; keeps the state of the server's model."""

    def test(self, test_data, device, args):
        torch.save(self.model.state_dict(), "server.pt")
        return 0.0, 0.0, None, None

    def test_all(self, train_data_local_dict, test_data_local_dict, device, args):
        self.test(None, device, args)
        return True


class Missing(dict):
    def __missing__(self, silo):
        return np.float64(SAMPLES[silo])


class Lazy:
    """Has no length, no names and no items."""

    def __getitem__(self, silo):
        return SAMPLES[silo]


TELLS = {"list": list(SAMPLES), "missing": Missing(), "lazy": Lazy()}
TELLS["none"] = UserDict({0: np.int64(58), 1: 0})


def load():
    draw = torch.Generator().manual_seed(5)
    loaders = {}
    for silo in range(2):
        labels = torch.randint(CLASSES, (24,), generator=draw)
        images = torch.randn(24, 1, 8, 8, generator=draw) + labels[:, None, None, None]
        loaders[silo] = DataLoader(TensorDataset(images, labels), 8)
    numbers = TELLS[os.environ["JOB_SAMPLES"]]
    return 48, 24, None, loaders[0], numbers, loaders, dict(loaders), CLASSES


if __name__ == "__main__":
    args = fedml.init(check_env=False)
    device = fedml.device.get_device(args)
    torch.manual_seed(0)
    model = Net()
    trainer, aggregator = Trainer(model, args), Aggregator(model, args)
    fedml.FedMLRunner(args, device, load(), model, trainer, aggregator).run()
