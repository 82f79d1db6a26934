"""Confidence interval of a mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.special import stdtrit  # the quantile of Student's t: scipy.stats is slow to import
from torch import Tensor

from ..errors import ConfigError

__all__ = ["mean_interval"]


def mean_interval(values: Sequence[float] | Tensor) -> dict[str, float | int | None]:
    """Mean and its 95 % interval by Student's t, from one value per image.

    Gives ``mean``, ``low``, ``high`` and ``n``. One value has no interval: low and high are None.

    Raises:
        ConfigError: there is no value, or one is not finite.

    Example:
        >>> {k: round(v, 2) for k, v in mean_interval([1.0, 2.0, 3.0]).items()}
        {'mean': 2.0, 'low': -0.48, 'high': 4.48, 'n': 3}

    """
    sample = torch.as_tensor(values, dtype=torch.float64).flatten()
    count = len(sample)
    if not count:
        raise ConfigError("a mean needs at least one value")
    if not sample.isfinite().all():
        raise ConfigError("a mean needs finite values: one is NaN or infinite")
    mean = float(sample.mean())
    if count == 1:
        return {"mean": mean, "low": None, "high": None, "n": 1}
    half = float(stdtrit(count - 1, 0.975)) * float(sample.std()) / math.sqrt(count)
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": count}
