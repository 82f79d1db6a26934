"""Attacks on rows of tables, by division, by rank, and by a decoder that has learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..analytic import AnalyticAttack
from ..attack import GradientInversion
from ..cocktail_party import CocktailPartyAttack
from ..decoder.learned import LearnedAttack
from ..spear import SpearAttack
from ..unknowns.table import TableRows
from .make import preset

__all__ = ["analytic", "cocktail_party", "learned", "spear", "tableak"]


def analytic(**overrides: Any) -> AnalyticAttack:
    """The input of a first linear layer by division, exactly: Phong et al., IEEE TIFS 13(5), 2018.

    Example:
        >>> analytic().name
        'analytic'

    """
    return AnalyticAttack(**overrides)


def cocktail_party(**overrides: Any) -> CocktailPartyAttack:
    """Cocktail party attack: Kariyappa et al., ICML 2023 (arXiv 2209.05578).

    Batches of many, through a first linear layer, by independent component analysis: 25,000 steps
    of Adam with learning rate 0.001 on negentropy, total variation 3.1 and decorrelation 1.47 at
    temperature 12.4, which the source sets for Tiny ImageNet.

    It differs from the source in this: FastICA's result is the start, where the source has the
    identity; the decorrelation leaves out what is of one input with itself; and the bias's gradient
    gives the inputs' scale, where the source spreads each over its range. The source's code sets
    the negentropy to 0 after it has computed it; the paper, and this, do not.

    Example:
        >>> cocktail_party(steps=2000).temperature
        12.4

    """
    return CocktailPartyAttack(**overrides)


def learned(**overrides: Any) -> LearnedAttack:
    """Learning to invert: Wu, Chen, Guo and Weinberger 2022 (arXiv 2210.10880); the locks are ours.

    A decoder from updates to images, trained on public images and simulated locks, half of them
    tuned to the public weights: 2,500 steps of 64 updates, 200 locks.

    Example:
        >>> learned(steps=1000).locks
        200

    """
    return LearnedAttack(**overrides)


def spear(**overrides: Any) -> SpearAttack:
    """SPEAR: Dimitrov, Baader, Mueller and Vechev, NeurIPS 2024 (arXiv 2403.03945).

    Whole batches exactly, through a linear layer with a ReLU: 10,000 submatrices at once, a million
    at most. Of an untrained model 12 images take some seconds.

    Example:
        >>> spear(samples=50_000).samples
        50000

    """
    return SpearAttack(**overrides)


def tableak(categories: Sequence[range] = (), **overrides: Any) -> GradientInversion:
    """TabLeak: Vero, Balunovic, Dimitrov and Vechev, ICML 2023 (arXiv 2210.01785).

    Rows of a table, with categories relaxed by a softmax: one minus the cosine similarity of
    gradients, Adam with learning rate 0.06 on the gradient's sign, 1,500 steps, from uniform
    starts. Labels are recovered first.

    It differs from the source in this: of the restarts the one with the lowest cost is kept, where
    the source takes the median of 30, and so there are 8; the learning rate falls in steps, and is
    in quarters of the bounds' width for numbers, where the source standardises them; and numbers
    are kept within the bounds by a box, not by a sigmoid.

    Args:
        categories: for each categorical feature the columns of its one-hot group. Columns in none
            are numbers.
        overrides: any field of ``GradientInversion``.

    Raises:
        ConfigError: the groups are none.

    Example:
        >>> tableak([range(2, 5), range(5, 9)], restarts=2).parametrisation
        TableRows(categories=(range(2, 5), range(5, 9)))

    """
    return preset(
        overrides,
        name="tableak",
        optimizer="adam",
        cost="cosine",
        steps=1500,
        restarts=8,
        learning_rate=0.06,
        signed=True,
        parametrisation=TableRows(tuple(categories)),
    )
