"""How updates are simulated and a decoder is trained on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ...errors import ConfigError

__all__ = ["DecoderFactory", "LearningSettings"]

DecoderFactory = Callable[[int, tuple[int, ...]], nn.Module]
"""``factory(features, input_shape)`` makes a module: ``(b, features)`` to ``(b, *input_shape)``."""


@dataclass(frozen=True)
class LearningSettings:
    """The settings of ``LearnedAttack``.

    Attributes:
        name: what a report calls it.
        steps: of the decoder's training, by Adam with decoupled weight decay.
        batch_size: simulated updates a step.
        learning_rate: the greatest: it rises over a tenth of the steps, then falls to 0.
        locks: drawn at once, and combined with the images anew at every step.
        tuned: share of the locks that are tuned; 1 suits trained weights, 0 those of a first round.
        tuning: steps of Adam by which they are tuned.
        warp: public images are turned, scaled, sheared and moved by up to this share of half their
            size before they are simulated; 0 takes them as they are, as rows of a table are taken.
        held_out: share of the public images that the decoder is not trained on.
        decoder: makes the decoder; None for ``ConvDecoder``.

    Raises:
        ConfigError: a field has a value that is not allowed.

    Example:
        >>> LearningSettings(steps=500).batch_size
        64

    """

    name: str = "learned"
    steps: int = 2500
    batch_size: int = 64
    learning_rate: float = 1e-3
    locks: int = 200
    tuned: float = 0.5
    tuning: int = 150
    warp: float = 0.1
    held_out: float = 0.1
    decoder: DecoderFactory | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "locks", "tuning"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.tuned <= 1:
            raise ConfigError(f"tuned must be 0 to 1, not {self.tuned}")
        if not 0 < self.learning_rate < float("inf"):
            raise ConfigError(f"learning_rate must be above 0, not {self.learning_rate}")
        if not 0 <= self.warp < 1:
            raise ConfigError(f"warp must be at least 0 and below 1, not {self.warp}")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out must be above 0 and below 1, not {self.held_out}")
