"""Checks by its gradient whether a ReLU follows a layer."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from ...errors import AttackError
from ..outputs import logits_of
from .layer_inputs import output_gradient

__all__ = ["check_relu"]


def check_relu(
    attack: str,
    model: nn.Module,
    name: str,
    *,
    shape: tuple[int, ...],
    bounds: tuple[float, float],
) -> None:
    """Raise AttackError unless the layer's gradient is 0 exactly if its output is below 0."""
    like = next(model.parameters())
    pixels = torch.linspace(*bounds, 16 * prod(shape)).to(like)

    def loss() -> Tensor:
        scores = logits_of(model(pixels.view(16, *shape)))
        weights = torch.arange(1.0, scores.numel() + 1).sin().view_as(scores).to(scores)
        return (scores * weights).sum()

    outputs, gradient = output_gradient(model, name, loss)
    below = outputs < 0
    if bool(gradient[below].any()) or not bool(gradient[~below].any()):
        raise AttackError(
            f"{attack} needs a ReLU behind the model's first layer, {name or 'the model'} "
            "(Linear), whose gradient is not 0 where its output is below 0; use another attack"
        )
