"""A job on real digits with FedML's own trainer; JOB_CASE says how a silo's data comes."""

import os

import fedml
import torch
from fedml.core import ClientTrainer
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CASE = os.environ.get("JOB_CASE", "")


def digits(silos):
    """Of each silo, its images and labels; and a third of all, which no silo has."""
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    parts = [torch.arange(1197)[silo::silos] for silo in range(silos)]
    parts[0] = parts[0][:300]  # silos are not of one size
    return [(images[p], labels[p]) for p in parts], (images[1197:], labels[1197:])


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def load(silos):
    parts, test = digits(silos)
    loaders = {s: DataLoader(TensorDataset(*part), 32) for s, part in enumerate(parts)}
    if CASE == "lists":
        loaders = {s: [*loader] for s, loader in loaders.items()}
    tests = DataLoader(TensorDataset(*test), 600)
    sizes = {s: len(part[0]) for s, part in enumerate(parts)}
    number = sum(sizes.values())
    return number, 600, None, tests, sizes, loaders, dict.fromkeys(loaders, tests), 10


class Own(ClientTrainer):
    """Makes its optimizer once, before FedML's runner has seen the model, and a loss of its own."""

    def __init__(self, model, args):
        super().__init__(model, args)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=args.learning_rate)

    def get_model_params(self):
        return self.model.state_dict()

    def set_model_params(self, model_parameters):
        self.model.load_state_dict(model_parameters)

    def train(self, train_data, device, args):
        for images, labels in train_data:
            self.optimizer.zero_grad()
            found = self.model(images).log_softmax(1)
            (-found[range(len(labels)), labels]).mean().backward()
            self.optimizer.step()

    def test(self, test_data, device, args):
        pass


if __name__ == "__main__":
    args = fedml.init(check_env=False)
    device = fedml.device.get_device(args)
    model = net()
    data, own = load(args.client_num_in_total), Own(model, args) if CASE == "own" else None
    fedml.FedMLRunner(args, device, data, model, own).run()
    if args.backend == "sp":
        torch.save(model.state_dict(), "one.pt")
