"""Rows of a table: numbers and one-hot groups, by division and by search."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.preprocessing import KBinsDiscretizer, MinMaxScaler
from torch import nn

from fedml_keylock import plugins
from fedml_keylock.errors import AttackError, ConfigError
from fedml_keylock.evaluation.matching import match
from fedml_keylock.inversion import (
    Clip,
    Knowledge,
    LocalTraining,
    Noise,
    Prune,
    Quantise,
    TableRows,
    analytic,
    tableak,
)
from fedml_keylock.inversion.labels import label_of_one
from fedml_keylock.types import ClientUpdate

pytestmark = pytest.mark.usefixtures("one_thread")
NUMBERS = 9
CATEGORIES = tuple(range(first, first + 4) for first in range(NUMBERS, NUMBERS + 16, 4))
KNOWN = Knowledge("oblivious", input_shape=(25,), classes=3)


@pytest.fixture(scope="module")
def wine():
    """178 wines: nine columns on [0, 1], and four that are binned into quartiles.

    The bins make categories out of measurements: their one-hot groups are honest, what they mean
    is not.
    """
    data = load_wine()
    numbers = MinMaxScaler().fit_transform(data.data[:, :NUMBERS])
    binning = KBinsDiscretizer(
        4, encode="onehot-dense", strategy="quantile", quantile_method="averaged_inverted_cdf"
    )
    groups = binning.fit_transform(data.data[:, NUMBERS:])
    rows = torch.tensor(np.hstack([numbers, groups])).float()
    assert rows.shape == (178, 25)
    return rows, torch.tensor(data.target)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(25, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)
    )


def attacked(attack, wine, make_update, *, updates, batch, known=KNOWN, seed=0):
    rows, labels = wine
    model = network()
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    chosen = chosen[: updates * batch].view(updates, batch)
    found = attack.reconstruct(
        [make_update(model, rows[some], labels[some]) for some in chosen],
        model,
        knowledge=replace(known, batch=batch),
        generator=torch.Generator().manual_seed(1),
    )
    matched = torch.stack(
        [one[match(one, true)] for one, true in zip(found.images, rows[chosen], strict=True)]
    )
    return found, matched.flatten(0, 1), rows[chosen].flatten(0, 1), labels[chosen]


def accuracy(found, truth, wine):
    """TabLeak's share of features that came back: numbers within 0.319 deviations, categories."""
    right = [((found - truth).abs() <= 0.319 * wine[0].std(0))[:, :NUMBERS]]
    for group in CATEGORIES:
        right.append((found[:, group].argmax(1) == truth[:, group].argmax(1))[:, None])
    return torch.cat(right, dim=1).float().mean()


def test_tableak_and_analytic_are_registered_and_take_fields():
    assert plugins.one_of("attacks", "tableak") is tableak
    assert plugins.one_of("attacks", "analytic") is analytic
    attack = tableak([range(2)], steps=7)
    assert attack.parametrisation == TableRows((range(2),))
    assert (attack.name, attack.steps, attack.cost) == ("tableak", 7, "cosine")
    assert tableak(parametrisation=TableRows()).parametrisation == tableak().parametrisation
    with pytest.raises(ConfigError, match="step: no such field"):
        tableak(step=7)
    with pytest.raises(ConfigError, match=r"steps: no such field; allowed: name$"):
        analytic(steps=7)


def test_tableak_reads_one_row_and_every_category(wine, make_update):
    attack = tableak(CATEGORIES, steps=300, restarts=2)
    found, rows, truth, labels = attacked(attack, wine, make_update, updates=4, batch=1)
    assert found.images.shape == (4, 1, 25)
    assert torch.equal(found.labels, labels)
    assert accuracy(rows, truth, wine) == 1
    assert (rows - truth).abs().mean(1).max() < 0.02
    # a softmax, and surely the right one
    sums = rows[:, NUMBERS:].unflatten(1, (4, 4)).sum(2)
    assert torch.allclose(sums, torch.ones(4, 4), atol=1e-5)


def test_tableak_reads_batches_of_rows_and_what_it_costs_tells_which(wine, make_update):
    attack = tableak(CATEGORIES, steps=300, restarts=4)
    found, rows, truth, labels = attacked(attack, wine, make_update, updates=4, batch=4)
    assert torch.equal(found.labels.sort(1).values, labels.sort(1).values)
    blind = accuracy(wine[0].mean(0).expand_as(truth), truth, wine)
    assert accuracy(rows, truth, wine) > blind + 0.4, (accuracy(rows, truth, wine), blind)
    best, worst = found.cost.argmin(), found.cost.argmax()
    scores = [accuracy(rows[4 * i : 4 * i + 4], truth[4 * i : 4 * i + 4], wine) for i in range(4)]
    assert scores[best] > 0.95, (scores, found.cost)
    assert scores[best] >= scores[worst]


def test_the_engine_replays_local_training_on_rows(wine, make_update):
    rows, labels = wine
    model, state = network(), None
    learning_rate, before = 0.1, dict(network().state_dict())
    for _ in range(2):
        state = make_update(model, rows[:1], labels[:1], learning_rate=learning_rate).after
        model.load_state_dict(state)
    found = tableak(CATEGORIES, steps=150, restarts=2).reconstruct(
        [ClientUpdate(before, state, learning_rate)],
        network(),
        knowledge=replace(KNOWN, labels=labels[:1, None], training=LocalTraining(1, epochs=2)),
        generator=torch.Generator().manual_seed(1),
    )
    assert accuracy(found.images[0], rows[:1], wine) == 1


def test_analytic_reads_a_row_with_categories_exactly(wine, make_update):
    found, rows, truth, labels = attacked(analytic(), wine, make_update, updates=20, batch=1)
    assert found.images.shape == (20, 1, 25)
    assert (rows - truth).abs().max() < 1e-4
    assert torch.equal(found.labels, labels)
    assert found.cost.max() < 1e-6


@pytest.mark.parametrize(
    ("transform", "exact"),
    [(Clip(1e-3), True), (Prune(0.1), False), (Noise(1e-2), False), (Quantise(3), False)],
)
def test_analytic_is_exact_for_what_was_clipped_and_its_cost_tells_the_rest(
    wine, make_update, transform, exact
):
    rows, labels = wine
    model = network()
    update = make_update(model, rows[:1], labels[:1])
    gradient = {name: update.pseudo_gradient(name) for name in update.before}
    sent = transform.apply(gradient, torch.Generator().manual_seed(0))
    found = analytic().reconstruct(
        [replace(update, after={name: update.before[name] - sent[name] for name in sent})],
        model,
        knowledge=replace(KNOWN, transforms=(transform,), labels=labels[:1, None]),
        generator=torch.Generator(),
    )
    error = (found.images[0] - rows[:1]).abs().mean().item()
    assert (error < 1e-3) is exact, error
    assert (found.cost.item() < 1e-4) is exact, found.cost


@pytest.mark.parametrize(
    ("load", "scale"), [(load_breast_cancer, None), (load_digits, 16.0)], ids=["table", "pixels"]
)
def test_fedml_s_logistic_regression_gives_every_row_and_label_away(load, scale, make_update):
    from fedml.model.linear.lr import LogisticRegression

    data = load()
    numbers = data.data / scale if scale else MinMaxScaler().fit_transform(data.data)
    rows, labels = torch.tensor(numbers).float(), torch.tensor(data.target)
    features, classes = rows.shape[1], int(labels.max()) + 1
    torch.manual_seed(0)
    model = LogisticRegression(features, classes)
    updates = [make_update(model, rows[i : i + 1], labels[i : i + 1]) for i in range(50)]
    found = analytic().reconstruct(
        updates,
        model,
        knowledge=Knowledge("oblivious", input_shape=(features,), classes=classes),
        generator=torch.Generator(),
    )
    assert (found.images[:, 0] - rows[:50]).abs().max() < 1e-4
    # the sigmoid scales the gradient of logit i by s(1 - s), which is above 0: signs stay
    assert torch.equal(found.labels[:, 0], labels[:50])
    assert found.cost.max() < 1e-6
    gradients = torch.stack([update.pseudo_gradient("linear.bias") for update in updates])
    assert ((gradients < 0).sum(1) == 1).all()
    weights = torch.stack([update.pseudo_gradient("linear.weight") for update in updates])
    # without a bias two classes cannot be told apart: their rows are each other's negative
    assert torch.equal(label_of_one(weights), labels[:50]) is (classes > 2)


def test_columns_come_out_in_their_places():
    rows = TableRows((range(1, 3), range(4, 7)))
    known = replace(KNOWN, input_shape=(8,), batch=2, bounds=(-1.0, 3.0))
    drawn = rows.draw(500, known, torch.Generator().manual_seed(0))
    assert {name: tuple(value.shape) for name, value in drawn.items()} == {
        "numbers": (500, 2, 3),
        "logits": (500, 2, 5),
    }
    images, labels = rows.decode(drawn, known)
    assert labels is None
    assert not rows.makes_labels
    assert torch.equal(images[..., [0, 3, 7]], drawn["numbers"])
    assert torch.allclose(images[..., 1:3], drawn["logits"][..., :2].softmax(-1))
    assert torch.allclose(images[..., 4:7], drawn["logits"][..., 2:].softmax(-1))
    low, high = drawn["numbers"].min(), drawn["numbers"].max()
    assert -1 <= low < -0.9 < 2.9 < high <= 3
    assert rows.box(known) == {"numbers": (-1.0, 3.0)}
    assert rows.rates(known) == {"numbers": 1.0, "logits": 1.0}
    assert torch.equal(rows.penalty(drawn), torch.zeros(500))


@pytest.mark.parametrize(("categories", "features"), [((), 3), ((range(3),), 3)])
def test_a_table_of_numbers_alone_or_of_categories_alone(categories, features):
    known = replace(KNOWN, input_shape=(features,), batch=2)
    rows = TableRows(categories)
    images, _ = rows.decode(rows.draw(5, known, torch.Generator()), known)
    assert images.shape == (5, 2, 3)
    assert torch.allclose(images.sum(-1), torch.ones(5, 2)) is bool(categories)


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ((range(3, 4),), "two neighbouring columns or more"),
        ((range(0, 6, 2),), "two neighbouring columns or more"),
        ((range(-2, 2),), "two neighbouring columns or more"),
        ((range(3), range(2, 5)), "belongs to two"),
    ],
)
def test_groups_that_are_none_are_refused(categories, message):
    with pytest.raises(ConfigError, match=message):
        tableak(categories)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input_shape": (1, 5, 5)}, r"input_shape \(features,\), not \(1, 5, 5\)"),
        ({"input_shape": (24,)}, "columns up to 24, and a row has 24: the last is 23"),
        ({"bounds": (-1.0, 0.5)}, r"outside of the bounds \(-1.0, 0.5\)"),
    ],
)
def test_inputs_that_are_no_such_rows_are_refused(wine, make_update, fields, message):
    rows, labels = wine
    with pytest.raises(AttackError, match=message):
        tableak(CATEGORIES, steps=1).reconstruct(
            [make_update(network(), rows[:1], labels[:1])],
            network(),
            knowledge=replace(KNOWN, **fields),
            generator=torch.Generator(),
        )
