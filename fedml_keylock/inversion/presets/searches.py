"""Presets that search for the pixels themselves."""

from __future__ import annotations

from typing import Any

from ..attack import GradientInversion
from ..unknowns.pixels import Pixels
from .make import preset

__all__ = ["dlg", "gradinversion", "idlg", "inverting_gradients", "surrogate"]


def dlg(**overrides: Any) -> GradientInversion:
    """Deep leakage from gradients: Zhu, Liu and Han, NeurIPS 2019 (arXiv 1906.08935).

    L-BFGS optimises images and soft labels together on the squared distance of gradients, with
    learning rate 1, 300 steps of 20 iterations, from normal noise. Known labels stay fixed.

    Example:
        >>> dlg(steps=150, restarts=2).steps
        150

    """
    return preset(
        overrides,
        name="dlg",
        optimizer="lbfgs",
        cost="squared_l2",
        steps=300,
        inner=20,
        learning_rate=1.0,
        parametrisation=Pixels("standard"),
        labels="optimise",
    )


def idlg(**overrides: Any) -> GradientInversion:
    """Improved DLG: Zhao, Mopuri and Bilen 2020 (arXiv 2001.02610).

    First reads the label exactly from the last layer's gradient, then optimises only the image, as
    ``dlg``. One image per update, unless ``Knowledge.labels`` are given.

    Example:
        >>> idlg(restarts=2).labels
        'recover'

    """
    return dlg(**{"name": "idlg", "labels": "recover", **overrides})


def inverting_gradients(**overrides: Any) -> GradientInversion:
    """Inverting gradients: Geiping, Bauermeister, Droege and Moeller, NeurIPS 2020 (2003.14053).

    The cost is one minus the cosine similarity of gradients, with total variation. Adam runs 4,800
    steps with learning rate 0.1 on the gradient's sign, under a box constraint. Labels are
    recovered first. The source sets the weight of total variation by model, from 1e-6 (trained
    ResNets) to 1e-1.

    Example:
        >>> inverting_gradients(total_variation=1e-2).cost
        'cosine'

    """
    return preset(
        overrides,
        name="inverting_gradients",
        optimizer="adam",
        cost="cosine",
        steps=4800,
        learning_rate=0.1,
        signed=True,
        total_variation=1e-2,
    )


def gradinversion(**overrides: Any) -> GradientInversion:
    """See through gradients: Yin, Mallya, Vahdat, Alvarez, Kautz and Molchanov, CVPR 2021.

    arXiv 2104.07586. The cost is the L2 distance of gradients. Adam runs 20,000 steps with learning
    rate 0.1 on the gradient itself. Four priors have the source's weights: total variation 1e-4,
    squared norm 1e-6, group consistency over the restarts 1e-2, and BatchNorm statistics 0.1 if
    ``Knowledge.statistics`` are known. Labels are recovered first.

    Differences from the source: the distance is squared, over all layers together and relative to
    the target's norm, so that the priors weigh less. Restarts are not registered to one another
    before their mean is taken. The learning rate falls in steps, not by a cosine after a warm-up.
    No noise is added to the steps. The four restarts are our choice.

    Example:
        >>> gradinversion(steps=2000).group_consistency
        0.01

    """
    return preset(
        overrides,
        name="gradinversion",
        optimizer="adam",
        cost="squared_l2",
        steps=20_000,
        restarts=4,
        learning_rate=0.1,
        total_variation=1e-4,
        squared_norm=1e-6,
        group_consistency=1e-2,
        batch_norm=0.1,
    )


def surrogate(**overrides: Any) -> GradientInversion:
    """AttackerModel model extension (SME): Zhu, Yao and Blaschko, ICML 2023 (arXiv 2306.00127).

    For updates of several local steps. The cost is one minus the cosine similarity of the update
    and the gradient at a state between before and after. The place of that state is searched from
    the middle, with learning rate 0.001. Adam runs 1,000 steps with learning rate 1 on the gradient
    itself, with total variation 0.01 in the source's unit, 0.04 in ours. A step costs one gradient,
    however many steps the silo took.

    Example:
        >>> surrogate(steps=500).surrogate
        True

    """
    return preset(
        overrides,
        name="surrogate",
        optimizer="adam",
        cost="cosine",
        steps=1000,
        learning_rate=1.0,
        surrogate=True,
        total_variation=0.04,
    )
