"""Attacks that search for the pixels themselves."""

from __future__ import annotations

from typing import Any

from ..attack import GradientInversion
from ..unknowns.pixels import Pixels
from .make import preset

__all__ = ["dlg", "gradinversion", "idlg", "inverting_gradients", "surrogate"]


def dlg(**overrides: Any) -> GradientInversion:
    """Deep leakage from gradients: Zhu, Liu and Han, NeurIPS 2019 (arXiv 1906.08935).

    Images and soft labels are optimised together by L-BFGS with learning rate 1 on the squared
    distance of gradients, 300 steps of 20 iterations, from normal noise. Known labels stay fixed.

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

    The label is read off the last layer's gradient first, exactly; then the images alone are
    optimised, as by ``dlg``. One image an update, unless ``Knowledge.labels`` are given.

    Example:
        >>> idlg(restarts=2).labels
        'recover'

    """
    return dlg(**{"name": "idlg", "labels": "recover", **overrides})


def inverting_gradients(**overrides: Any) -> GradientInversion:
    """Inverting gradients: Geiping, Bauermeister, Droege and Moeller, NeurIPS 2020 (2003.14053).

    One minus the cosine similarity of gradients and total variation, Adam with learning rate 0.1 on
    the gradient's sign, 4,800 steps, a box constraint; labels are recovered first. The source sets
    the weight of total variation by model, from 1e-6 (trained ResNets) to 1e-1.

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

    arXiv 2104.07586. The L2 distance of gradients, Adam with learning rate 0.1 on the gradient
    itself, 20,000 steps, and four priors at the source's weights: total variation 1e-4, squared
    norm 1e-6, group consistency over the restarts 1e-2, and BatchNorm statistics 0.1 where
    ``Knowledge.statistics`` are known. Labels are recovered first.

    It differs from the source in this: the distance is squared, over all layers together, and
    relative to the target's, so that the priors' weights do not weigh as much as there; restarts
    are not registered to one another before their mean is taken; the learning rate falls in steps,
    not by a cosine after a warm-up; and no noise is added to the steps. Four restarts are ours.

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

    For updates of several local steps: one minus the cosine similarity of the update and the
    gradient at a state between that before and that after, whose place is searched from the middle
    with learning rate 0.001; Adam with learning rate 1 on the gradient itself, 1,000 steps, total
    variation 0.01 in the source's unit, which is 0.04 in ours. A step costs as much as one of a
    single gradient, however many steps the silo took.

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
