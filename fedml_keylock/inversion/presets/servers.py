"""Presets of a malicious server that sends silos manipulated weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...errors import ConfigError
from ..active.imprint import ImprintAttack
from ..active.inconsistent_models import InconsistentModelsAttack
from ..active.trap_weights import TrapWeightsAttack
from ..base import Attack
from .others import analytic, cocktail_party, spear
from .searches import dlg, idlg, inverting_gradients

__all__ = ["imprint", "inconsistent_models", "trap_weights"]

_READERS: Mapping[str, Callable[..., Attack]] = {
    made.__name__: made
    for made in (analytic, cocktail_party, dlg, idlg, inverting_gradients, spear)
}


def imprint(**overrides: Any) -> ImprintAttack:
    """Robbing the Fed: Fowl, Geiping, Czaja, Goldblum and Goldstein, ICLR 2022 (arXiv 2110.13057).

    Recovers single pictures from an update or a sum of many, by a first linear layer that sorts
    them by brightness.

    Differences from the source: the server changes weights and adds no layer. Thresholds are
    quantiles of public data, not of a normal distribution. The layer's outputs are so small that
    the bias's gradient identifies a bin with a single picture, and its label.

    Example:
        >>> imprint().signal
        1e-05

    """
    return ImprintAttack(**overrides)


def inconsistent_models(
    reads: str | Mapping[str, Mapping[str, Any]] = "analytic", **overrides: Any
) -> InconsistentModelsAttack:
    """Eluding secure aggregation: Pasquini, Francati and Ateniese, CCS 2022 (arXiv 2111.07380).

    The victim gets the job's weights, and all other silos weights with dead units, so that the sum
    is the victim's update.

    Args:
        reads: the passive attack on that update: its name, or its name with its fields.
        overrides: any field of ``InconsistentModelsAttack``.

    Raises:
        ConfigError: there is no such attack.

    Example:
        >>> inconsistent_models({"spear": {"samples": 9}}, victim=2).reads.samples
        9

    """
    named = {reads: {}} if isinstance(reads, str) else dict(reads)
    if len(named) != 1 or not named.keys() <= _READERS.keys():
        raise ConfigError(f"reads: {reads!r} is not one of {', '.join(_READERS)}")
    ((name, fields),) = named.items()
    return InconsistentModelsAttack(reads=_READERS[name](**fields), **overrides)


def trap_weights(**overrides: Any) -> TrapWeightsAttack:
    """When the curious abandon honesty: Boenisch et al., EuroS&P 2023 (arXiv 2112.02918).

    Recovers pictures that alone activate a unit of a first linear layer, whose weights are half
    negative and half positive.

    Differences from the source: public data tune the scaling of the positive weights automatically.
    The layer's outputs are so small that the bias's gradient identifies a unit with a single
    picture, and its label, where the source compares with the truth.

    Example:
        >>> trap_weights(scaling=0.95).scaling
        0.95

    """
    return TrapWeightsAttack(**overrides)
