import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import nn
from torch.nn.functional import cross_entropy

from fedml_keylock.errors import AttackError
from fedml_keylock.inversion import (
    Knowledge,
    batch_norm_statistics,
    gradinversion,
    group_consistency,
    inverting_gradients,
    squared_norm,
    total_variation,
)
from fedml_keylock.inversion.cost import COSTS, cosine, l1, squared_l2, wasserstein
from fedml_keylock.inversion.engine.objective import Layout, Objective
from fedml_keylock.inversion.prior import Prior

pytestmark = pytest.mark.usefixtures("one_thread")
KNOWN = Knowledge("oblivious", input_shape=(1, 8, 8), classes=10)


def layers(seed, shapes=((3, 2), (5,)), count=4):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, *shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
def test_what_every_cost_promises(cost):
    found, target, ones = layers(0), layers(1), torch.ones(4, 2)
    assert cost(target, target, ones).abs().max() < 1e-6
    costs = cost(found, target, ones)
    assert costs.shape == (4,)
    assert costs.min() > 0.1
    scaled = [[7 * part for part in parts] for parts in (found, target)]
    assert torch.allclose(cost(*scaled, ones), costs, rtol=1e-5)
    alone = cost([part[2:3] for part in found], [part[2:3] for part in target], ones[:1])
    assert torch.allclose(alone, costs[2:3])
    first = torch.tensor([1.0, 0.0]).expand(4, 2)
    assert torch.allclose(cost(found, target, first), cost(found[:1], target[:1], ones[:, :1]))


def test_l1_is_relative_to_the_target():
    found, target = layers(0), layers(1)
    weights = torch.tensor([[0.5, 2.0]]).expand(4, 2)
    expected = sum(
        w * (f - t).abs().flatten(1).sum(1) for w, f, t in zip((0.5, 2), found, target, strict=True)
    )
    size = sum(w * t.abs().flatten(1).sum(1) for w, t in zip((0.5, 2), target, strict=True))
    assert torch.allclose(l1(found, target, weights), expected / size)


def test_wasserstein_is_scipy_s_layer_by_layer():
    found, target = layers(0), layers(1)
    costs = wasserstein(found, target, torch.tensor([[0.5, 2.0]]).expand(4, 2))
    for row in range(4):
        error = size = 0.0
        for weight, f, t in zip((0.5, 2.0), found, target, strict=True):
            f, t = f[row].flatten().tolist(), t[row].flatten().tolist()
            error += weight * wasserstein_distance(f, t)
            size += weight * wasserstein_distance([0.0], [abs(value) for value in t])
        assert costs[row].item() == pytest.approx(error / size, rel=1e-4)
    shuffled = [part.flip(1) for part in target]
    assert wasserstein(shuffled, target, torch.ones(4, 2)).abs().max() < 1e-6


def test_layers_are_weighed(lenet, make_update):
    model = lenet(1, 8)
    names = [name for name, _ in model.named_parameters()]
    by_depth = {name: 1 - depth / len(names) for depth, name in enumerate(names)}
    update = make_update(model, torch.rand(1, 1, 8, 8), torch.tensor([3]))
    costs = [
        inverting_gradients(steps=1, layer_weights=weights)
        .reconstruct([update], model, knowledge=KNOWN, generator=torch.Generator())
        .cost
        for weights in ({}, by_depth)
    ]
    assert not torch.allclose(*costs)


@pytest.mark.parametrize("cost", ["l1", "wasserstein"])
def test_the_costs_can_be_searched_by(cost, lenet, make_update):
    model = lenet(1, 8, activation=nn.GELU)
    update = make_update(model, torch.rand(1, 1, 8, 8), torch.tensor([3]))
    attack = inverting_gradients(cost=cost, steps=150, total_variation=0.0)
    found = attack.reconstruct([update], model, knowledge=KNOWN, generator=torch.Generator())
    assert found.history[-1] < 0.3 * found.history[0]


def test_squared_norm_and_group_consistency_are_the_paper_s():
    images = torch.randn(5, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    update = torch.tensor([0, 0, 0, 1, 2])
    pixels = images[0].numel()
    assert torch.allclose(squared_norm(images), images.flatten(1).norm(dim=1) ** 2 / pixels)
    found = group_consistency(images, update)
    for index in range(3):
        distance = (images[index] - images[:3].mean(0)).norm() / math.sqrt(pixels)
        assert found[index].item() == pytest.approx(distance.item(), rel=1e-5)
    assert found[3:].tolist() == [0, 0]


def test_the_mean_of_the_restarts_does_not_move_and_outlives_what_diverged():
    images = torch.tensor([1.0, 5.0, float("nan"), 2.0]).reshape(4, 1, 1, 1, 1).requires_grad_()
    found = group_consistency(images, torch.tensor([0, 0, 0, 1]))
    assert found[[0, 1, 3]].tolist() == [2, 2, 0]
    (slope,) = torch.autograd.grad(found.sum(), images)
    # each restart is pulled to the mean; the only one of its update is left alone
    assert slope.flatten()[[0, 1, 3]].tolist() == [-1, 1, 0]


def test_batch_norm_statistics_are_the_paper_s():
    generator = torch.Generator().manual_seed(0)
    found, given = (
        {name: tuple(torch.rand(2, c, generator=generator) for _ in "mv") for name, c in sizes}
        for sizes in [[("a", 3), ("b", 5), ("unasked", 2)], [("a", 3), ("b", 5)]]
    )
    costs = batch_norm_statistics(found, given)
    for row in range(2):
        expected = sum(
            (found[n][k][row] - given[n][k][row]).norm().item() for n in "ab" for k in (0, 1)
        )
        assert costs[row].item() == pytest.approx(expected, rel=1e-5)


def test_weights_mean_the_same_whatever_the_bounds():
    images, update = torch.rand(3, 1, 1, 4, 4), torch.tensor([0, 0, 1])
    weights = {"total_variation": 0.3, "squared_norm": 0.2, "group_consistency": 0.1}
    one = Prior(**weights)(images, update, {}, {})
    other = Prior(**weights, bounds=(-2.0, 3.0))(5 * images - 2, update, {}, {})
    assert torch.allclose(one, other, rtol=1e-5)
    centred = images - 0.5
    parts = (total_variation(centred), squared_norm(centred), group_consistency(centred, update))
    expected = sum(w * part for w, part in zip(weights.values(), parts, strict=True))
    assert torch.allclose(one, expected, rtol=1e-5)


@pytest.mark.parametrize("states", [1, 2])
@pytest.mark.parametrize("cost", [squared_l2, cosine])
def test_the_objective_with_every_prior_is_what_a_loop_computes(states, cost):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GELU(),
        nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=False), nn.GELU(),
        nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    torch.func.replace_all_batch_norm_modules_(model)
    public = {
        name: value.detach() + 0.1 * torch.randn(states, *value.shape)
        for name, value in model.named_parameters()
    }
    state, update = torch.tensor([0, 1, 1]) % states, torch.tensor([0, 1, 1])
    labels = torch.tensor([[1, 2], [3, 3], [0, 9]])
    targets = {name: torch.randn(3, *value.shape[1:]) for name, value in public.items()}
    given = {name: (torch.randn(3, 4), torch.rand(3, 4)) for name in ("1", "4")}
    prior = Prior(0.1, 0.2, 0.3, 0.4)
    layout = Layout({"images": (2, 1, 8, 8)})
    objective = Objective(
        model=model, layout=layout, state=state, public=public, fixed={}, labels=labels,
        knowledge=Knowledge("oblivious", input_shape=(1, 8, 8), classes=5, batch=2),
        rates=torch.ones(3),
        targets=targets, weights=torch.ones(3, len(targets)), cost=cost, prior=prior,
        update=update, statistics=given,
    )  # fmt: skip
    rows = torch.rand(3, 128)
    costs, gradients = objective(rows)
    together = rows.reshape(3, 2, 1, 8, 8)
    for index in range(3):
        row = rows[index].clone().requires_grad_()
        images = row.reshape(2, 1, 8, 8)
        weights = {n: v[state[index]].clone().requires_grad_() for n, v in public.items()}
        first = torch.func.functional_call(model[0], _of(weights, "0"), (images,))
        x = model[2](torch.func.functional_call(model[1], _of(weights, "1"), (first,)))
        second = torch.func.functional_call(model[3], _of(weights, "3"), (x,))
        logits = torch.func.functional_call(model, weights, (images,))
        loss = cross_entropy(logits, labels[index])
        found = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        expected = cost(
            [part[None] for part in found],
            [targets[name][index : index + 1] for name in weights],
            torch.ones(1, len(targets)),
        ).sum()
        total = expected + 0.1 * total_variation(images[None]).sum()
        total = total + 0.2 * (images - 0.5).square().mean()
        if index:
            mean = together[1:].mean(0)
            total = total + 0.3 * (images - mean).norm() / math.sqrt(128)
        for name, inputs in (("1", first), ("4", second)):
            mean, variance = (part[index] for part in given[name])
            total = total + 0.4 * (inputs.mean((0, 2, 3)) - mean).norm()
            total = total + 0.4 * (inputs.var((0, 2, 3), unbiased=False) - variance).norm()
        (slope,) = torch.autograd.grad(total, row)
        assert costs[index].item() == pytest.approx(expected.item(), abs=1e-4)
        assert torch.allclose(gradients[index], slope, rtol=1e-3, atol=1e-5)


def _of(weights, module):
    return {n.split(".")[1]: v for n, v in weights.items() if n.split(".")[0] == module}


def test_group_consistency_brings_restarts_together_and_chunks_do_not_part_them(lenet, make_update):
    model = lenet(1, 8, activation=nn.GELU)
    updates = [make_update(model, torch.rand(1, 1, 8, 8), torch.tensor([i])) for i in range(2)]
    attack = inverting_gradients(steps=20, restarts=3, group_consistency=1.0)

    def run(attack):
        return attack.reconstruct(updates, model, knowledge=KNOWN, generator=torch.Generator())

    whole, split = run(attack), run(replace(attack, chunk=2))
    assert torch.allclose(whole.cost, split.cost, rtol=1e-2)
    assert not torch.allclose(whole.cost, run(replace(attack, group_consistency=0.0)).cost)


class Normed(nn.Module):
    """A network with a layer of each kind that statistics may be wrongly known of."""

    def __init__(self):
        super().__init__()
        self.norm, self.twice, self.idle = (nn.BatchNorm2d(1, affine=False) for _ in "123")
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.twice(self.twice(self.norm(x))).flatten(1))


def of(name="norm", mean=0.0, variance=1.0, shape=(1, 1)):
    return {name: (torch.full(shape, mean), torch.full(shape, variance))}


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        (of("head"), "no BatchNorm head"),
        (of("gone"), "no BatchNorm gone"),
        (of(shape=(1,)), r"the mean of norm is \(1,\) where \(1, 1\)"),
        (of(shape=(2, 1)), r"the mean of norm is \(2, 1\)"),
        (of(mean=math.nan), "the mean of norm has NaN"),
        (of(variance=math.inf), "the variance of norm has NaN or inf"),
        (of(variance=-1.0), "the variance of norm is below 0"),
        (of("idle"), "does not run idle"),
        (of("twice"), "runs twice more than once"),
    ],
)
def test_statistics_that_do_not_fit_the_model_are_refused(make_update, statistics, message):
    model = Normed()
    update = make_update(model, torch.rand(1, 1, 8, 8), torch.tensor([3]))
    known = replace(KNOWN, level="statistics", statistics=statistics)
    with pytest.raises(AttackError, match=message):
        gradinversion(steps=1).reconstruct(
            [update], model, knowledge=known, generator=torch.Generator()
        )


def test_an_attack_that_cannot_use_statistics_refuses_them(make_update):
    model = Normed()
    update = make_update(model, torch.rand(1, 1, 8, 8), torch.tensor([3]))
    known = replace(KNOWN, level="statistics", statistics=of())
    with pytest.raises(AttackError, match="inverting_gradients has no use for"):
        inverting_gradients(steps=1).reconstruct(
            [update], model, knowledge=known, generator=torch.Generator()
        )
    found = gradinversion(steps=1).reconstruct(
        [update], model, knowledge=known, generator=torch.Generator()
    )
    assert found.knowledge == "statistics"
