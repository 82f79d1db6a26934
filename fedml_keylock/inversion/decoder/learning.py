"""How updates are simulated and a decoder is trained on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field
from torch import nn

from ...settings import Count, Positive, Share, checked

__all__ = ["DecoderFactory", "LearningSettings"]

DecoderFactory = Callable[[int, tuple[int, ...]], nn.Module]
"""``factory(features, input_shape)`` makes a module: ``(b, features)`` to ``(b, *input_shape)``."""


@checked
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
        warp: public images are rotated, scaled, sheared and moved by up to this share of half their
            size before they are simulated; 0 takes them as they are, as rows of a table are taken.
        held_out: share of the public images that the decoder is not trained on.
        decoder: makes the decoder; None for ``ConvDecoder``.

    Example:
        >>> LearningSettings(steps=500).batch_size
        64

    """

    name: str = "learned"
    steps: Count = 2500
    batch_size: Count = 64
    learning_rate: Positive = 1e-3
    locks: Count = 200
    tuned: Annotated[float, Field(ge=0, le=1)] = 0.5
    tuning: Count = 150
    warp: Share = 0.1
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    decoder: DecoderFactory | None = None
