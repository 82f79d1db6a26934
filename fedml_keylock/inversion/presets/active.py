"""Attacks of a server that sends silos weights of its own choice."""

from __future__ import annotations

from typing import Any

from ..active.imprint import ImprintAttack

__all__ = ["imprint"]


def imprint(**overrides: Any) -> ImprintAttack:
    """Robbing the Fed: Fowl, Geiping, Czaja, Goldblum and Goldstein, ICLR 2022 (arXiv 2110.13057).

    Single pictures out of an update or a sum of many, through a first linear layer that sorts them
    by their brightness.

    It differs from the source in this: the server changes weights and adds no layer; thresholds are
    quantiles of public data, and not of a normal distribution; what the layer gives is so little
    that a bin with one picture is told from others by its bias's gradient, with its label.

    Example:
        >>> imprint().signal
        0.0001

    """
    return ImprintAttack(**overrides)
