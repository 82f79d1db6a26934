import doctest

import pytest
import torch
from sklearn.datasets import load_wine
from sklearn.metrics import mean_absolute_error as of_sklearn
from sklearn.metrics import precision_recall_fscore_support

from fedml_keylock.errors import ConfigError
from fedml_keylock.evaluation import table_metrics
from fedml_keylock.evaluation.matching import match
from fedml_keylock.evaluation.table_metrics import (
    feature_accuracy,
    mean_absolute_error,
    token_scores,
)


@pytest.fixture
def rows():
    """Eight wines, standardised: far outside of [0, 1]."""
    data = torch.tensor(load_wine().data).float()
    return ((data - data.mean(0)) / data.std(0))[::23]


def test_the_examples_run():
    assert doctest.testmod(table_metrics).failed == 0


def test_features_are_counted_once_each_whatever_their_columns():
    truth = torch.tensor([[0.5, 0.0, 1.0, 0.0, 2.0], [0.5, 1.0, 0.0, 0.0, 2.0]])
    found = torch.tensor([[0.7, 0.1, 0.6, 0.3, 2.5], [0.5, 0.3, 0.4, 0.3, 2.0]])
    groups = (range(1, 4),)
    assert feature_accuracy(truth, truth, categories=groups).tolist() == [1, 1]
    given = {"categories": groups, "tolerance": 0.3}
    assert feature_accuracy(found, truth, **given).tolist() == pytest.approx([2 / 3, 2 / 3])
    # each column's own tolerance; those of one-hot columns are not looked at
    given["tolerance"] = torch.tensor([0.1, 9.0, 9.0, 9.0, 1.0])
    assert feature_accuracy(found, truth, **given).tolist() == pytest.approx([2 / 3, 2 / 3])
    given["tolerance"] = torch.tensor([0.3, 0.0, 0.0, 0.0, 1.0])
    assert feature_accuracy(found, truth, **given).tolist() == pytest.approx([1, 2 / 3])
    assert feature_accuracy(found[:, 1:4], truth[:, 1:4], categories=(range(3),)).tolist() == [1, 0]


def test_mean_absolute_error_is_scikit_learn_s_row_by_row_and_of_images_too(rows):
    other = rows.flip(0)
    expected = [
        of_sklearn(true, row) for true, row in zip(rows.numpy(), other.numpy(), strict=True)
    ]
    assert mean_absolute_error(other, rows).tolist() == pytest.approx(expected, rel=1e-5)
    assert mean_absolute_error(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)).tolist() == [1, 1]


def test_rows_are_matched_as_they_are(rows):
    shuffle = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    assert rows.min() < -1
    assert rows.max() > 2
    noisy = (rows + 0.1 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(1)))[
        shuffle
    ]
    assert torch.equal(shuffle[match(noisy, rows)], torch.arange(len(rows)))
    # clamped to [0, 1], as pictures are, these two would be the same
    apart = torch.tensor([[-1.0], [-3.0]])
    assert match(apart[[1, 0]], apart).tolist() == [1, 0]


@pytest.mark.parametrize("score", [feature_accuracy, mean_absolute_error, match])
def test_rows_that_cannot_be_scored_are_refused(score, rows):
    with pytest.raises(ConfigError, match="must both be"):
        score(rows[:2], rows)
    with pytest.raises(ConfigError, match="must both be"):
        score(rows[0], rows[0])
    with pytest.raises(ConfigError, match="finite"):
        score(rows * float("nan"), rows)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"categories": (range(11, 14),)}, "columns lie in 0 to 12"),
        ({"categories": (range(-1, 2),)}, "columns lie in 0 to 12"),
        ({"categories": (range(3, 3),)}, "columns lie in 0 to 12"),
        ({"tolerance": torch.ones(4)}, r"13 columns and tolerances \(4,\)"),
    ],
)
def test_columns_that_do_not_exist_are_refused(rows, fields, message):
    with pytest.raises(ConfigError, match=message):
        feature_accuracy(rows, rows, **fields)
    with pytest.raises(ConfigError, match=r"are \(n, features\)"):
        feature_accuracy(rows[:, :, None, None], rows[:, :, None, None])


def test_tokens_score_as_sets_do():
    generator = torch.Generator().manual_seed(0)
    truth = [torch.randint(0, 40, (2, 6), generator=generator) for _ in range(5)]
    found = [torch.randint(0, 40, (9,), generator=generator).unique() for _ in range(4)]
    found.append(torch.tensor([], dtype=torch.long))
    scores = token_scores(found, truth)
    for index, (one, true) in enumerate(zip(found, truth, strict=True)):
        asked = [token in one.tolist() for token in range(40)]
        there = [token in true.flatten().tolist() for token in range(40)]
        expected = precision_recall_fscore_support(there, asked, average="binary", zero_division=0)
        values = [scores[name][index].item() for name in ("precision", "recall", "f1")]
        assert values == pytest.approx(expected[:3])
    assert scores["f1"][4] == 0


@pytest.mark.parametrize(
    ("found", "truth", "message"),
    [
        ([torch.tensor([1])], [], "for 1 updates of 0"),
        ([], [], "for 0 updates of 0"),
        ([torch.tensor([1.0])], [torch.tensor([1])], "integers from 0 on"),
        ([torch.tensor([-1])], [torch.tensor([1])], "integers from 0 on"),
        ([torch.tensor([1])], [torch.tensor([], dtype=torch.long)], "no true tokens"),
    ],
)
def test_tokens_that_cannot_be_scored_are_refused(found, truth, message):
    with pytest.raises(ConfigError, match=message):
        token_scores(found, truth)
