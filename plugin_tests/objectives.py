"""Objectives of attacks, and their gradients beside finite differences."""

import torch

from fedml_keylock.inversion import Knowledge, inverting_gradients
from fedml_keylock.inversion.engine.assemble import assemble
from fedml_keylock.inversion.engine.observe import observe
from fedml_keylock.inversion.engine.probe import probe
from fedml_keylock.types import ClientUpdate


def objective_of(net, batch, shape, classes=3):
    """Three candidates for an update that is none: somewhere beside its target."""
    net = net.double().train()
    state = {name: value.detach().clone() for name, value in net.state_dict().items()}
    trained = dict(net.named_parameters())
    before = {n: v + 0.3 * torch.randn_like(v) if n in trained else v for n, v in state.items()}
    after = {n: v + torch.randn_like(v) if n in trained else v for n, v in before.items()}
    labels = torch.arange(batch)[None] % 3
    known = Knowledge("oblivious", input_shape=shape, classes=classes, batch=batch, labels=labels)
    attack = inverting_gradients(steps=1, restarts=3, total_variation=0.0)
    updates = [ClientUpdate(before, after, 1.0)]
    observation = observe(updates, net, known)
    made = assemble(attack, updates, observation, known, labels, torch.Generator())
    return probe(made)[0]


def off(objective, candidates, step=1e-5):
    """By how much of itself the slope along a random way is another than the objective's rise."""
    way = torch.randn_like(candidates)
    _, gradient = objective(candidates)
    rise = objective.value(candidates + step * way)[1] - objective.value(candidates - step * way)[1]
    rise = rise / (2 * step)
    return float((((gradient * way).sum(1) - rise) / rise).abs().max())
