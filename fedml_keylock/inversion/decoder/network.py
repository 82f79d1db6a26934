"""Defines the decoder network, and trains it."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import AttackError
from .learning import LearningSettings
from .simulation import Simulation

__all__ = ["ConvDecoder", "train_decoder"]

_WINDOW = 7  # pixels, of the structural similarity in the training loss
_POINTS = 20  # in the history of the held-out error


class ConvDecoder(nn.Module):
    """Two hidden layers, then convolutions from a quarter of an image's size to its full size.

    For a row of a table it has the hidden layers only.

    Args:
        features: how many features an update has.
        input_shape: ``(c, h, w)`` or ``(features,)``.
        hidden: width of the hidden layers.
        channels: of the smallest map.

    Example:
        >>> ConvDecoder(50, (3, 30, 30), hidden=8)(torch.zeros(2, 50)).shape
        torch.Size([2, 3, 30, 30])

    """

    def __init__(
        self, features: int, input_shape: tuple[int, ...], *, hidden: int = 512, channels: int = 32
    ) -> None:
        super().__init__()
        self.input_shape = input_shape
        self.grid: tuple[int, ...] = ()
        if len(input_shape) == 3:
            self.grid = (channels, *(-(-side // 4) for side in input_shape[1:]))
        self.hidden = nn.Sequential(
            *(nn.Linear(features, hidden), nn.LayerNorm(hidden), nn.GELU()),
            *(nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.GELU()),
            nn.Linear(hidden, math.prod(self.grid or input_shape)),
        )
        if self.grid:
            self.maps = nn.Sequential(
                *(nn.GELU(), nn.Upsample(scale_factor=2)),
                *(nn.Conv2d(channels, channels, 3, padding=1), nn.GELU()),
                *(nn.Conv2d(channels, channels // 2, 3, padding=1), nn.GELU()),
                *(nn.Conv2d(channels // 2, 4 * input_shape[0], 3, padding=1), nn.PixelShuffle(2)),
            )

    def forward(self, features: Tensor) -> Tensor:
        """``(b, features)`` to ``(b, *input_shape)``, without bounds: the attack adds them."""
        made: Tensor = self.hidden(features)
        if not self.grid:
            return made.view(-1, *self.input_shape)
        made = self.maps(made.view(-1, *self.grid))
        return made[..., : self.input_shape[1], : self.input_shape[2]]


class _Bounded(nn.Module):
    """Bounds a decoder's output to [0, 1]; an output of 0 gives the mean public image."""

    mean: Tensor

    def __init__(self, decoder: nn.Module, mean: Tensor) -> None:
        super().__init__()
        self.decoder = decoder
        self.register_buffer("mean", mean.clamp(0.02, 0.98).logit())

    def forward(self, features: Tensor) -> Tensor:
        made: Tensor = self.decoder(features)
        if made.shape != (len(features), *self.mean.shape):
            raise AttackError(
                f"the decoder gives {tuple(made.shape)} where "
                f"{(len(features), *self.mean.shape)} is needed"
            )
        return (made + self.mean).sigmoid()


def train_decoder(
    attack: LearningSettings, simulation: Simulation, report: Callable[[int], None]
) -> tuple[nn.Module, Tensor]:
    """The decoder at its lowest held-out error, and that error ``(t,)`` during training."""
    factory = attack.decoder or ConvDecoder
    made = factory(simulation.width, tuple(simulation.knowledge.input_shape))
    decoder = _Bounded(made.to(simulation.images), simulation.mean)
    optimizer = torch.optim.AdamW(decoder.parameters(), attack.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, attack.steps))
    images, labels = simulation.held_out()
    held = simulation.seen(images, labels)
    every = -(-attack.steps // _POINTS)
    errors: list[Tensor] = []
    best = decoder.state_dict()
    for step in range(1, attack.steps + 1):
        truth, labels = simulation.draw(attack.batch_size)
        loss = _error(decoder.train()(simulation.seen(truth, labels)), truth)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has none
        optimizer.step()
        schedule.step()
        if step % every and step < attack.steps:
            continue
        with torch.no_grad():
            errors.append(_error(decoder.eval()(held), images))
        if not errors[-1].isfinite():
            raise AttackError(f"{attack.name}'s decoder has diverged: lower the learning_rate")
        if errors[-1] <= min(errors):
            best = deepcopy(decoder.state_dict())
        report(step)
    decoder.load_state_dict(best)
    return decoder.eval(), torch.stack(errors)


def _rate(steps: int, step: int) -> float:
    """The learning rate's factor: rises for a tenth of the steps, then falls along a cosine."""
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(1, steps - rise))


def _error(made: Tensor, truth: Tensor) -> Tensor:
    """Five times the mean squared error, plus one minus the structural similarity of images.

    The similarity is that of Wang et al. 2004 in the paper's first window, a uniform one. It is an
    average pooling, much faster to differentiate than the Gaussian one that scores use.
    """
    error = 5 * F.mse_loss(made, truth)
    if made.dim() < 4 or min(made.shape[2:]) < _WINDOW:
        return error
    pool = partial(F.avg_pool2d, kernel_size=_WINDOW, stride=1)
    a, b = pool(made), pool(truth)
    spread = pool(made * made) - a * a + pool(truth * truth) - b * b
    together = pool(made * truth) - a * b
    first, second = 0.01**2, 0.03**2
    means = (2 * a * b + first) / (a * a + b * b + first)
    return error + 1 - (means * (2 * together + second) / (spread + second)).mean()
