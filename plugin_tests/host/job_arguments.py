"""A small model, and a job's arguments as FedML has them."""

from types import SimpleNamespace

from torch import nn

PAPER = {"lock": "paper", "key_length": 16}


def made():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )


def arguments(**changes):
    found = {
        "training_type": "cross_silo",
        "backend": "MPI",
        "federated_optimizer": "FedAvg",
        "enable_defense": True,
        "defense_type": "keylock",
        "keylock": PAPER,
        "client_num_in_total": 2,
        "client_num_per_round": 2,
        "worker_num": 2,
        "comm_round": 3,
        "role": "client",
        "rank": 2,
    }
    return SimpleNamespace(**found | changes)


SIMULATED = {"training_type": "simulation", "backend": "sp"}
