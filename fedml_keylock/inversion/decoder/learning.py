"""Holds the settings of the learned attack's simulation and training."""

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
        name: name of the attack in reports.
        steps: of the decoder's training, by Adam with decoupled weight decay.
        batch_size: simulated updates in a step.
        learning_rate: the highest: it rises for a tenth of the steps, then falls to 0.
        locks: how many locks are drawn once, and combined anew with the images at every step.
        tuned: share of the locks that are tuned; 1 suits trained weights, 0 those of a first round.
        tuning: how many steps of Adam tune them.
        warp: public images are rotated, scaled, sheared and moved by up to this share of half their
            size before they are simulated; 0 leaves them unchanged, as for rows of a table.
        held_out: share of the public images that is kept out of training.
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
