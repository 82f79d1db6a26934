"""Whoever watches a job changes nothing in it: plugins, and tests of what a silo was given."""

from types import SimpleNamespace

import torch
from torch import nn

from fedml_keylock import hookimpl
from fedml_keylock.host.observer import Observer
from fedml_keylock.host.own_accuracy import measure
from fedml_keylock.plugins import manager


class Spoils:
    @hookimpl
    def before_upload(self, update):
        for state in (update.before, update.after):
            state["w"].zero_()


def test_a_plugin_that_changes_an_update_changes_nothing_that_is_sent():
    received, state = {"w": torch.ones(2)}, {"w": torch.full((2,), 2.0)}
    observer = Observer(SimpleNamespace(learning_rate=0.1), received=received)
    plugin = Spoils()
    manager().register(plugin)
    try:
        observer.show("before_upload", state, 1.0, 0, 0)
    finally:
        manager().unregister(plugin)
    assert received["w"].tolist() == [1, 1]
    assert state["w"].tolist() == [2, 2]


def test_a_test_of_the_trainer_s_leaves_random_numbers_and_modes():
    def test(_data, _device, _args):
        torch.rand(5)
        model.eval()
        return {"test_correct": 1, "test_total": 2}

    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    before = torch.get_rng_state()
    assert measure(SimpleNamespace(test=test), model, [], "cpu", None) == 0.5
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())
