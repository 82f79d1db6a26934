"""The contents of a leakage report: numbers, pictures, and facts on the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import ConfigError
from ..leakage import CostCurve, LeakageRow
from ..picture import check_images
from ..vocabulary import METRICS

__all__ = ["Contents", "Gallery", "plain_values"]


@dataclass(frozen=True)
class Gallery:
    """The reconstructions of the report's originals by one attack.

    Attributes:
        title: "keylock:paper:all, inverting_gradients, adaptive".
        images: ``(n, c, h, w)`` on [0, 1], in the order of the originals.
        stage: stage of the weights at their rounds' start, as in the rows; empty if unknown.

    Raises:
        ConfigError: the images are of another shape, or a pixel is not finite.

    """

    title: str
    images: Tensor = field(repr=False)
    stage: str = ""

    def __post_init__(self) -> None:
        check_images(f"gallery {self.title!r}", self.images)


@dataclass(frozen=True)
class Contents:
    """The leakage and the accuracy of each defense.

    Attributes:
        accuracy: defense to role to interval, 0 to 1. Roles: "own_lock", over the silos;
            "fresh_lock", with a random key; "server", without a key.
        leakage: the rows, including undefended ones and baselines.
        originals: ``(n, c, h, w)`` on [0, 1]; n is 0 if nothing was attacked.
        galleries: the originals' reconstructions, each ``(n, c, h, w)``.
        job: facts on the run, in plain values: data, model, rounds, silos, seed, seconds, versions,
            command.
        costs: the cost curve of each attack's search.
        accuracy_rounds: defense to role to ``(round, share)``, 0 to 1.

    Raises:
        ConfigError: the pictures do not fit together, or ``job`` does not fit into JSON.

    """

    accuracy: Mapping[str, Mapping[str, Any]]
    leakage: Sequence[LeakageRow]
    originals: Tensor = field(repr=False)
    galleries: Sequence[Gallery] = field(repr=False)
    job: Mapping[str, Any]
    costs: Sequence[CostCurve] = ()
    accuracy_rounds: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        check_images("originals", self.originals)
        for gallery in self.galleries:
            if len(gallery.images) != len(self.originals):
                raise ConfigError(
                    f"gallery {gallery.title!r} has {len(gallery.images)} images and there are "
                    f"{len(self.originals)} originals"
                )
        plain_values(self.job, "job")

    @property
    def more_metrics(self) -> list[str]:
        """Names of plugins' metrics."""
        found = {name for row in self.leakage for name in row.metrics}
        return sorted(found - set(METRICS))


def plain_values(value: Any, name: str) -> Any:
    """Convert to JSON values; non-finite numbers become None. The name is for errors."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain_values(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(item, name) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (int, float)):
        return value if math.isfinite(value) else None
    raise ConfigError(
        f"{name}: a {type(value).__name__} cannot stand in a report; use plain values"
    )
