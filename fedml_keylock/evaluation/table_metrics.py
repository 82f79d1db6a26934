"""How much of a table's rows, or of a text's tokens, came back. Batches are matched first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.functional import mean_absolute_error as absolute_error
from torchmetrics.functional.classification import (
    binary_f1_score,
    binary_precision,
    binary_recall,
)

from ..errors import ConfigError

__all__ = ["feature_accuracy", "mean_absolute_error", "token_scores"]


def feature_accuracy(
    rows: Tensor,
    truth: Tensor,
    *,
    categories: Sequence[range] = (),
    tolerance: float | Tensor = 0.1,
) -> Tensor:
    """The share of a row's features that came back (Vero et al., ICML 2023, arXiv 2210.01785).

    A categorical feature is right if the greatest of its columns is the true one, a number if it is
    within a tolerance of the truth. Each counts once, whatever number of columns it has. The source
    takes 0.319 deviations of the column as tolerance.

    Args:
        rows: ``(n, features)`` reconstructions, one-hot groups as probabilities or rounded.
        truth: ``(n, features)`` what they should be, each the same place's (``matching.match``).
        categories: for each categorical feature the columns of its one-hot group.
        tolerance: of every number, or ``(features,)``, of which those of one-hot columns are not
            looked at.

    Returns:
        ``(n,)`` from 0 to 1, which is every feature.

    Raises:
        ConfigError: the shapes differ or are not those of rows, a value is not finite, or a column
            or a tolerance does not exist.

    Example:
        >>> truth = torch.tensor([[0.50, 0.0, 1.0, 0.0]])
        >>> rows = torch.tensor([[0.55, 0.5, 0.3, 0.2]])
        >>> feature_accuracy(rows, truth, categories=(range(1, 4),))
        tensor([0.5000])

    """
    _check(rows, truth)
    if rows.ndim != 2 or not rows.shape[1]:
        raise ConfigError(f"rows of a table are (n, features), not {tuple(rows.shape)}")
    features = rows.shape[1]
    if any(not group or min(group) < 0 or max(group) >= features for group in categories):
        raise ConfigError(f"a categorical feature's columns lie in 0 to {features - 1}")
    limit = torch.as_tensor(tolerance, device=rows.device)
    if limit.shape not in ((), (features,)):
        raise ConfigError(f"there are {features} columns and tolerances {tuple(limit.shape)}")
    chosen = {column for group in categories for column in group}
    numbers = [column for column in range(features) if column not in chosen]
    right = [((rows - truth).abs() <= limit)[:, numbers]]
    for group in categories:
        columns = list(group)
        found, true = rows[:, columns].argmax(1), truth[:, columns].argmax(1)
        right.append((found == true)[:, None])
    return torch.cat(right, dim=1).float().mean(1)


def mean_absolute_error(rows: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute error, in the values' own unit; of images as well.

    Args:
        rows: ``(n, ...)`` reconstructions.
        truth: ``(n, ...)`` what they should be, each the same place's (``matching.match``).

    Returns:
        ``(n,)``, 0 for an exact copy.

    Raises:
        ConfigError: the shapes differ, there is nothing, or a value is not finite.

    Example:
        >>> mean_absolute_error(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 1.0]]))
        tensor([0.2500])

    """
    _check(rows, truth)
    pairs = zip(rows.detach().float(), truth.detach().float(), strict=True)
    return torch.stack([absolute_error(row, true) for row, true in pairs])


def token_scores(found: Sequence[Tensor], truth: Sequence[Tensor]) -> dict[str, Tensor]:
    """Precision, recall and F1 of sets of tokens.

    Args:
        found: u tensors of token indices, one an update, as of ``TokenReconstruction.tokens``.
        truth: u tensors of token indices of any shape. How often a token occurs does not matter.
            Leave padding out: no gradient names it.

    Returns:
        ``precision``, ``recall`` and ``f1``, each ``(u,)`` from 0 to 1; 0 where nothing is found.

    Raises:
        ConfigError: there is not one set of tokens for each update, a true one is empty, or an
            index is below 0 or no integer.

    Example:
        >>> scores = token_scores([torch.tensor([1, 4])], [torch.tensor([[4, 1, 1], [9, 3, 4]])])
        >>> scores["precision"], scores["recall"]
        (tensor([1.]), tensor([0.5000]))

    """
    if len(found) != len(truth) or not truth:
        raise ConfigError(f"tokens were found for {len(found)} updates of {len(truth)}")
    for tokens in (*found, *truth):
        if tokens.is_floating_point() or tokens.is_complex() or (tokens < 0).any():
            raise ConfigError("tokens are integers from 0 on")
    if not all(tokens.numel() for tokens in truth):
        raise ConfigError("an update has no true tokens")
    vocabulary = 1 + max(int(t.max()) for t in (*found, *truth) if t.numel())
    pairs = list(zip(_flags(found, vocabulary), _flags(truth, vocabulary), strict=True))
    return {
        name: torch.stack([score(one, other) for one, other in pairs])
        for name, score in (
            ("precision", binary_precision),
            ("recall", binary_recall),
            ("f1", binary_f1_score),
        )
    }


def _flags(sets: Sequence[Tensor], vocabulary: int) -> list[Tensor]:
    """``(vocabulary,)`` for each set: 1 for what is in it."""
    nothing = torch.zeros(vocabulary, dtype=torch.long)
    return [nothing.index_fill(0, tokens.flatten().cpu().long(), 1) for tokens in sets]


def _check(rows: Tensor, truth: Tensor) -> None:
    if rows.shape != truth.shape or rows.ndim < 2 or not len(rows):
        raise ConfigError(
            "rows and truth must both be (n, features), not "
            f"{tuple(rows.shape)} and {tuple(truth.shape)}"
        )
    if not (rows.isfinite().all() and truth.isfinite().all()):
        raise ConfigError("rows and truth must be finite: a value is NaN or infinite")
