"""The published attacks, each a ``GradientInversion`` with its source's settings."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError
from .attack import GradientInversion

__all__ = ["dlg", "inverting_gradients"]


def dlg(**overrides: Any) -> GradientInversion:
    """Deep leakage from gradients: Zhu, Liu and Han, NeurIPS 2019 (arXiv 1906.08935).

    Images and soft labels are optimised together by L-BFGS with learning rate 1 on the squared
    distance of gradients, 300 steps of 20 iterations, from normal noise. Known labels stay fixed.

    Args:
        overrides: any field of ``GradientInversion``.

    Raises:
        ConfigError: a field does not exist or its value is not allowed.

    Example:
        >>> dlg(steps=150, restarts=2).steps
        150

    """
    return _preset(
        {
            "name": "dlg",
            "optimizer": "lbfgs",
            "cost": "squared_l2",
            "steps": 300,
            "inner": 20,
            "learning_rate": 1.0,
            "labels": "optimise",
        },
        overrides,
    )


def inverting_gradients(**overrides: Any) -> GradientInversion:
    """Inverting gradients: Geiping, Bauermeister, Droege and Moeller, NeurIPS 2020 (2003.14053).

    One minus the cosine similarity of gradients and total variation, Adam with learning rate 0.1 on
    the gradient's sign, 4,800 steps, a box constraint; labels are recovered first. The source sets
    the weight of total variation by model, from 1e-6 (trained ResNets) to 1e-1.

    Args:
        overrides: any field of ``GradientInversion``.

    Raises:
        ConfigError: a field does not exist or its value is not allowed.

    Example:
        >>> inverting_gradients(total_variation=1e-2).cost
        'cosine'

    """
    return _preset(
        {
            "name": "inverting_gradients",
            "optimizer": "adam",
            "cost": "cosine",
            "steps": 4800,
            "learning_rate": 0.1,
            "signed": True,
            "total_variation": 1e-2,
        },
        overrides,
    )


def _preset(settings: dict[str, Any], overrides: dict[str, Any]) -> GradientInversion:
    unknown = sorted(set(overrides) - set(GradientInversion.__dataclass_fields__))
    if unknown:
        allowed = ", ".join(sorted(GradientInversion.__dataclass_fields__))
        raise ConfigError(f"an attack has no field {', '.join(unknown)}; it has {allowed}")
    return GradientInversion(**{**settings, **overrides})
