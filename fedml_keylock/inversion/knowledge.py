"""What an attacker knows besides the update and the public model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import AttackError, ConfigError

__all__ = ["LEVELS", "Knowledge", "Secrets"]

LEVELS = ("oblivious", "adaptive", "statistics", "oracle")


@dataclass(frozen=True)
class Secrets:
    """Parameters of the attacker's model that the update does not hold: a lock's private state.

    Attributes:
        names: their names in the attacker's ``model.named_parameters()``.
        draw: for ``adaptive`` and ``statistics``: ``draw(count, generator)`` returns name to
            starts, each ``(count, *shape)``, one a candidate, to be optimised with the image.
        given: for ``oracle``: name to values, each ``(u, *shape)``, one an update. Held fixed.

    With neither, the values in the attacker's model stand and are held fixed: an ``oblivious``
    attacker who only knows that the lock exists.

    Raises:
        ConfigError: no names, a name twice, both ``draw`` and ``given``, or names that ``given``
            does not hold.

    Example:
        >>> import torch
        >>> Secrets(("lock.gamma",), draw=lambda count, g: {
        ...     "lock.gamma": 0.3 + 1.4 * torch.rand(count, 12, generator=g)}).names
        ('lock.gamma',)

    """

    names: tuple[str, ...]
    draw: Callable[[int, torch.Generator], dict[str, Tensor]] | None = None
    given: Mapping[str, Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) != len(self.names):
            raise ConfigError("Secrets.names must name at least one parameter, each once")
        if self.draw is not None and self.given is not None:
            raise ConfigError("Secrets takes draw (adaptive) or given (oracle), not both")
        if self.given is not None and set(self.given) != set(self.names):
            odd = ", ".join(sorted(set(self.given) ^ set(self.names)))
            raise ConfigError(f"Secrets.given and Secrets.names differ in: {odd}")


@dataclass(frozen=True)
class Knowledge:
    """The attacker, declared. An attack uses nothing beyond this, the update and the model.

    Attributes:
        level: one of ``LEVELS``. ``oblivious`` ignores the defense, ``adaptive`` knows its kind and
            optimises what is private together with the image, ``statistics`` does so and sees the
            statistics of normalisation layers, ``oracle`` is given what is private.
        input_shape: ``(c, h, w)`` of one image.
        classes: how many classes the model tells apart.
        batch: images in each update, n.
        labels: ``(u, n)`` integer labels if they are known; otherwise the attack finds them.
        bounds: least and greatest pixel value, in the units that the model is fed.
        secrets: what the update does not hold; None if the attacker's model has nothing private.
        statistics: for ``statistics``, and for ``oracle`` if it wants them: name of a BatchNorm
            module of the attacker's model to mean and variance of its input, each ``(u, c)``, one
            an update: the running statistics, where they are public.

    Raises:
        AttackError: the level does not fit the secrets or the statistics.
        ConfigError: a field has a value that is not allowed.

    Example:
        >>> Knowledge("oblivious", input_shape=(1, 28, 28), classes=10).batch
        1

    """

    level: str
    input_shape: tuple[int, int, int]
    classes: int
    batch: int = 1
    labels: Tensor | None = field(default=None, repr=False)
    bounds: tuple[float, float] = (0.0, 1.0)
    secrets: Secrets | None = None
    statistics: Mapping[str, tuple[Tensor, Tensor]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ConfigError(f"knowledge level {self.level!r} is none of {', '.join(LEVELS)}")
        if len(self.input_shape) != 3 or min(self.input_shape) < 1:
            raise ConfigError(f"input_shape must be (c, h, w), not {tuple(self.input_shape)}")
        if self.classes < 2:
            raise ConfigError(f"classes must be at least 2, not {self.classes}")
        if self.batch < 1:
            raise ConfigError(f"batch must be at least 1, not {self.batch}")
        if not self.bounds[0] < self.bounds[1]:
            raise ConfigError(f"bounds must be (low, high) with low < high, not {self.bounds}")
        self._check_labels()
        self._check_secrets()
        self._check_statistics()

    def _check_labels(self) -> None:
        labels = self.labels
        if labels is None:
            return
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise AttackError(f"labels must be integers, not {labels.dtype}")
        if labels.ndim != 2 or labels.shape[1] != self.batch:
            raise AttackError(
                f"labels must be (updates, {self.batch}), not {tuple(labels.shape)}: one label for "
                "each image of each update"
            )
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise AttackError(
                f"labels must lie in 0 to {self.classes - 1}, these span "
                f"{int(labels.min())} to {int(labels.max())}"
            )

    def _check_secrets(self) -> None:
        secrets = self.secrets
        if secrets is None:
            return
        if self.level in ("adaptive", "statistics") and secrets.draw is None:
            raise AttackError(
                f"an attacker who is {self.level!r} optimises the secrets: Secrets needs draw"
            )
        if self.level == "oracle" and secrets.given is None:
            raise AttackError("an oracle attacker is told the secrets: Secrets needs given")
        if self.level == "oblivious" and (secrets.draw or secrets.given) is not None:
            raise AttackError(
                "an oblivious attacker knows no secrets: leave out Secrets.draw and Secrets.given"
            )

    def _check_statistics(self) -> None:
        if self.level == "statistics" and not self.statistics:
            raise AttackError(
                "an attacker who is 'statistics' sees those of normalisation layers: "
                "Knowledge needs statistics"
            )
        if self.statistics is not None and self.level not in ("statistics", "oracle"):
            raise AttackError(
                f"an {self.level} attacker sees no statistics: the level for it is 'statistics'"
            )
