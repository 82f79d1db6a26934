"""A job's model works under a silo's own lock, from its vault, and under no new one."""

from collections import OrderedDict
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedml_keylock.builtin import keylock
from fedml_keylock.evaluation.audit import share_correct
from fedml_keylock.inversion import PublicData
from fedml_keylock.locks import Vault, lock_model, private_state_dict
from fedml_keylock.locks.entropy import seeded_uniform
from fedml_keylock.silos import fresh_lock_accuracy, own_locks

CLASSES = 8
SETTINGS = {"lock": "paper", "layers": "all", "key_length": 16}


def drawn(seed):
    return seeded_uniform(torch.Generator().manual_seed(seed))


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)),
    )


@pytest.fixture(scope="module")
def data():
    """A tile all over each picture: its class, which only the balance of few channels tells."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat(16)
    tiles = torch.rand(CLASSES, 1, 4, 4, generator=generator).repeat(1, 1, 3, 3)[labels]
    return PublicData(tiles + 0.03 * torch.randn(tiles.shape, generator=generator), labels)


@pytest.fixture(scope="module")
def job(data, tmp_path_factory):
    """A model that was trained under silo 1's lock, and the vaults of silos 0 to 1."""
    folder = tmp_path_factory.mktemp("vault")
    defense = keylock({**SETTINGS, "vault": str(folder)})
    layout = defense.describe(net()).layout
    for silo in (0, 1):
        model = net()
        lock_model(model, defense.config, uniform=drawn(silo))
        optimizer = torch.optim.Adam(model.parameters(), 0.05)
        for _ in range(120):
            optimizer.zero_grad()
            cross_entropy(model(data.images), data.labels).backward()
            optimizer.step()
        Vault(folder, silo, layout).save(private_state_dict(model), round_index=1)
    plain = net()
    plain.load_state_dict(model.state_dict())
    return plain, defense, own_locks(plain, defense, folder)


def test_the_lock_of_the_silo_fits_and_no_new_one_does(job, data):
    plain, defense, own = job
    assert share_correct(own(plain.state_dict(), 1, None), data) == 1.0
    found = fresh_lock_accuracy(plain, defense, own, data, count=8, silos=2, uniform=drawn(2))
    assert len(found) == 8
    assert sum(found) / len(found) < 0.6
    assert all(not module._forward_hooks for module in plain.modules())


def test_the_silos_give_their_statistics_in_turn_and_draws_can_be_seeded(job, data):
    plain, defense, own = job
    asked = []

    def watched(model, silo, round_index):
        asked.append((silo, round_index))
        return own(model, silo, round_index)

    first, second = (
        fresh_lock_accuracy(plain, defense, watched, data, count=3, silos=2, uniform=drawn(3))
        for _ in range(2)
    )
    assert first == second
    assert asked == 2 * [(0, None), (1, None), (0, None)]


def test_no_new_lock_has_weights_of_a_silo_s_own_by_their_name(data, tmp_path):
    """Statistics are told by what they are: a layer may be called as they are."""
    plain = nn.Sequential(OrderedDict(running_stem=nn.Conv2d(1, 4, 3), flat=nn.Flatten(),
                                      head=nn.Linear(400, CLASSES)))  # fmt: skip
    defense = keylock({"lock": "paper", "vault": str(tmp_path)})
    kept = deepcopy(plain)
    lock_model(kept, defense.config, uniform=drawn(0))
    own = private_state_dict(kept)
    given = []

    def lock_of_silo(*_):
        given.append(deepcopy(kept))
        return given[-1]

    fresh_lock_accuracy(plain, defense, lock_of_silo, data, count=1, silos=1, uniform=drawn(1))
    assert not any(
        torch.equal(tensor, own[name])
        for name, tensor in private_state_dict(given[0]).items()
        if not name.rsplit(".", 1)[-1].startswith(("running_", "num_"))
    )


@pytest.mark.parametrize("lock", ["sealed", "rotated"])
def test_of_a_lock_at_the_wire_no_statistics_are_needed(data, tmp_path, lock):
    plain, defense = net(), keylock({"lock": lock, "vault": str(tmp_path)})

    def never(*_):
        raise AssertionError("a silo's lock")

    found = fresh_lock_accuracy(plain, defense, never, data, count=2, silos=3)
    assert len(found) == 2
    assert max(found) < 0.6
