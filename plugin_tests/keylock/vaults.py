"""What the tests of vaults share: a locked model, and what a refusal is."""

import traceback

import pytest
import torch
from torch import nn

from fedml_keylock.errors import VaultError
from fedml_keylock.locks import KeyLockConfig, lock_model, private_state_dict

CONFIG = KeyLockConfig(key_length=16, module="mixing", targets="all")
WORDS = b"correct horse battery staple"


def made(config=CONFIG):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.Flatten()
    )
    lock_model(model, config)
    model(torch.rand(4, 1, 8, 8))  # running statistics of its own
    return model


def same(one, other):
    return list(one) == list(other) and all(
        torch.equal(one[n], other[n]) and one[n].dtype == other[n].dtype for n in one
    )


def refused(vault, message, path=None):
    """The vault does not load, says why in a line (no passphrase in it), leaves the model alone."""
    model = made()
    before = private_state_dict(model)
    with pytest.raises(VaultError, match=message) as caught:
        vault.load(model, path)
    text = str(caught.value)
    assert "\n" not in text
    assert WORDS.decode() not in "".join(traceback.format_exception(caught.value))
    assert same(private_state_dict(model), before)
    return text
