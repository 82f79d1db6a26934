"""What silos and server must agree on: every setting that is not a silo's own is in their mark."""

import pytest
from torch import nn

from fedml_keylock.builtin import keylock
from fedml_keylock.locks import KeyLockConfig

PAPER = {"lock": "paper"}
ROSTER = {"roster": "silos.yaml", "identity": "silo.key"}
EVERYONES = {
    "lock": ({}, {"lock": "rotated"}),
    "group_key": ({}, {"group_key": "a"}),
    "colluders": ({}, {"colluders": 1}),
    "scale": ({}, {"scale": 2.0}),
    "tell_accuracy": ({}, {"tell_accuracy": True}),
    "tell_samples": ({}, {"tell_samples": True}),
    "layers": (PAPER, {"layers": "all"}),
    "key_length": (PAPER, {"key_length": 17}),
    "activation": (PAPER, {"activation": "sigmoid"}),
    "chained": (PAPER, {"chained": True}),
    "share_norm_statistics": (PAPER, {"share_norm_statistics": True}),
    "robust_aggregation": (PAPER, {"robust_aggregation": "krum"}),
    "noise": ({"colluders": 1}, {"noise": {"clip": 1.0, "multiplier": 1.0, "delta": 1e-5}}),
}
A_SILO_S_OWN = {
    "link_key": ({}, {"link_key": "a"}),
    "roster": ({}, ROSTER),
    "identity": ({}, ROSTER),
    "first_model": ({}, {"first_model": "own"}),
    "checkpoint": ({}, {"checkpoint": "a.safetensors"}),
    "save_model": ({}, {"save_model": "a"}),
    "own_accuracy": ({}, {"own_accuracy": False}),
    "log_training": ({}, {"log_training": True}),
    "vault": ({}, {"vault": "a"}),
    "keep_history": ({}, {"keep_history": True}),
    "encrypt_vault": ({}, {"encrypt_vault": True}),
}


def mark(settings):
    return keylock(settings).describe(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))).mark


@pytest.mark.parametrize("field", KeyLockConfig.model_fields)
def test_every_setting_is_in_the_mark_or_a_silo_s_own(field):
    before, change = (EVERYONES | A_SILO_S_OWN)[field]
    assert (mark(before) != mark({**before, **change})) == (field in EVERYONES)


def test_of_the_silos_secret_the_mark_says_only_that_there_is_one():
    assert mark({"group_key": "a"}) == mark({"group_key": "b"})
