"""A job on real digits with FedML's own trainer; JOB_CASE says how a silo's data comes."""

import os

import fedml
import torch
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


if __name__ == "__main__":
    args = fedml.init(check_env=False)
    device = fedml.device.get_device(args)
    model = net()
    fedml.FedMLRunner(args, device, load(args.client_num_in_total), model).run()
    if args.backend == "sp":
        torch.save(model.state_dict(), "one.pt")
