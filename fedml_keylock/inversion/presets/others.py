"""Presets without a search for pixels: exact attacks, tables and a learned decoder."""

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
    """Exact input of a first linear layer, by division: Phong et al., IEEE TIFS 13(5), 2018.

    Example:
        >>> analytic().name
        'analytic'

    """
    return AnalyticAttack(**overrides)


def cocktail_party(**overrides: Any) -> CocktailPartyAttack:
    """Cocktail party attack: Kariyappa et al., ICML 2023 (arXiv 2209.05578).

    Recovers large batches from a first linear layer, by independent component analysis. Adam runs
    25,000 steps with learning rate 0.001 on negentropy, total variation 3.1 and decorrelation 1.47
    at temperature 12.4, the source's values for Tiny ImageNet.

    Differences from the source: the start is FastICA's result, not the identity. The decorrelation
    leaves out an input's correlation with itself. The bias's gradient gives the inputs' scale,
    where the source stretches each input to its range. The source's code sets the negentropy to 0
    after computing it; the paper and this attack do not.

    Example:
        >>> cocktail_party(steps=2000).temperature
        12.4

    """
    return CocktailPartyAttack(**overrides)


def learned(**overrides: Any) -> LearnedAttack:
    """Learning to invert: Wu, Chen, Guo and Weinberger 2022 (arXiv 2210.10880); the locks are ours.

    A decoder from updates to images, trained on public images and simulated locks. Half of the
    locks are tuned to the public weights: 2,500 steps of 64 updates, 200 locks.

    Example:
        >>> learned(steps=1000).locks
        200

    """
    return LearnedAttack(**overrides)


def spear(**overrides: Any) -> SpearAttack:
    """SPEAR: Dimitrov, Baader, Mueller and Vechev, NeurIPS 2024 (arXiv 2403.03945).

    Recovers whole batches exactly from a linear layer with a ReLU. It tries 10,000 submatrices at
    once, and at most a million. With an untrained model 12 images take some seconds.

    Example:
        >>> spear(samples=50_000).samples
        50000

    """
    return SpearAttack(**overrides)


def tableak(categories: Sequence[range] = (), **overrides: Any) -> GradientInversion:
    """TabLeak: Vero, Balunovic, Dimitrov and Vechev, ICML 2023 (arXiv 2210.01785).

    Recovers rows of a table, with categories relaxed by a softmax. The cost is one minus the cosine
    similarity of gradients; Adam runs 1,500 steps with learning rate 0.06 on the gradient's sign,
    from uniform starts. Labels are recovered first.

    Differences from the source: of 8 restarts the one with the lowest cost is kept, where the
    source takes the median of 30. The learning rate falls in steps. For numbers it is in quarters
    of the bounds' width, where the source standardises them. A box keeps numbers within the bounds,
    not a sigmoid.

    Args:
        categories: for each categorical feature, the columns of its one-hot group. Other columns
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
