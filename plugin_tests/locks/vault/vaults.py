"""What the tests of vaults share: a locked model, and what a refusal is."""

import traceback

import pytest
import torch
from torch import nn

from fedml_keylock.errors import VaultError
from fedml_keylock.locks import (
    KeyLockConfig,
    load_private_state_dict,
    lock_model,
    private_state_dict,
)

CONFIG = KeyLockConfig(lock="paper", key_length=16, layers="all")
WORDS = b"correct horse battery staple"


def made(config=CONFIG):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.Flatten()
    )
    lock_model(model, config)
    model(torch.rand(4, 1, 8, 8))  # running statistics of its own
    return model


def save(vault, model, *, round_index):
    """As a job does it."""
    vault.save(private_state_dict(model), round_index=round_index)


def load(vault, model, path=None):
    """As a job does it; the round."""
    state, round_index = vault.load(path)
    load_private_state_dict(model, state)
    return round_index


def same(one, other):
    return list(one) == list(other) and all(
        torch.equal(one[n], other[n]) and one[n].dtype == other[n].dtype for n in one
    )


def refused(vault, message, path=None):
    """The vault does not load, says why in a line (no passphrase in it), leaves the model alone."""
    model = made()
    before = private_state_dict(model)
    with pytest.raises(VaultError, match=message) as caught:
        load(vault, model, path)
    text = str(caught.value)
    assert "\n" not in text
    assert WORDS.decode() not in "".join(traceback.format_exception(caught.value))
    assert same(private_state_dict(model), before)
    return text
