"""Runs a job's noise under `unit: example`: secret batches, clipped gradients, sealed sums."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import LockError
from ...types import ClientUpdate
from .encoding import CHUNK
from .entries import Entry
from .example_layers import WHO, check_layers
from .examples import ExampleGradients
from .gaussian import DiscreteGaussian
from .job_noise import JobNoise
from .keystream import Keystream
from .noise import ClippedUpdate, Grid, Release, RoundNoise
from .poisson import Examples, drawn
from .shares import Shares

__all__ = ["ExampleSums", "JobExamples", "largest"]


def largest(rate: float, examples: float) -> int:
    """A number of examples that no batch reaches: sums are clamped to it.

    Args:
        rate: the probability of each example to be in a batch.
        examples: of the silo with the most data.

    Example:
        >>> largest(0.01, 20_000)
        552

    """
    mean = rate * examples
    return math.ceil(2 * mean + 10 * math.sqrt(mean) + 10)


@dataclass
class ExampleSums(Release):
    """The sums of one step's clipped gradients, in steps of the grid: a `Release`.

    Attributes:
        sums: name to int64 tensor.
        grid: of all tensors.
        most: the bound that they are clamped to, in steps.
        rate: the probability of each example to be in the batch.
        learning_rate: of the step.
        settings: further numbers that must be the same in all silos.

    """

    sums: Mapping[str, Tensor] = field(repr=False)
    grid: Grid
    most: int
    rate: float
    learning_rate: float
    settings: Sequence[float]

    def __post_init__(self) -> None:
        self.grids = dict.fromkeys(self.sums, self.grid)

    @property
    def public(self) -> Sequence[float]:
        """The settings and the learning rate."""
        return [*self.settings, self.rate, self.learning_rate]

    def scale(self, shares: Shares) -> float:
        """A step divided by the expected number of examples in a batch."""
        return -self.learning_rate / (self.rate * shares.total)

    def words(self, entry: Entry) -> Iterator[NDArray[np.int32]]:
        """The clamped sums."""
        flat = self.sums[entry.name].reshape(-1)
        for start in range(0, len(flat), CHUNK):
            part = flat[start : start + CHUNK].clamp(-self.most, self.most)
            yield part.to(torch.int32).numpy()

    def vote(self) -> None:
        """No vote is sent."""

    def check(self) -> None:
        """Nothing: each example's gradient was checked before it was added."""


@dataclass
class JobExamples(JobNoise):
    """A silo's view of its job's noise under `unit: example`.

    With one step a round, the silo seals the sum of its clipped gradients with its share of the
    noise. With more steps, it adds all of the noise at each step, and seals the trained model.
    """

    weighs: ClassVar[bool] = True

    _model: nn.Module | None = field(default=None, repr=False)
    _gradients: ExampleGradients | None = field(default=None, repr=False)
    _trained: deque[tuple[ExampleGradients, ExampleSums | None, int]] = field(
        default_factory=deque, repr=False
    )
    _examples: int = 0
    _sums: tuple[Grid, int] | None = None

    @property
    def alone(self) -> bool:
        """Whether this silo adds all of the noise itself, at each of several steps."""
        return self.config.steps > 1

    def look(self, model: nn.Module) -> None:
        """Inspect the model, and check that per-example gradients can be computed for it."""
        super().look(model)
        check_layers(model)

    def begin(self, model: nn.Module) -> None:
        """Use the model that is about to train."""
        self._detach()
        self._model = model

    def batches(self, data: Any, told: Callable[[float], Sequence[float]]) -> list[Any]:
        """Draw a round's batches from the silo's data, and attach the per-example hooks.

        Args:
            data: the silo's.
            told: tells the other silos this silo's number of examples, and returns those of all
                silos.

        Raises:
            ConfigError: no batches can be drawn from the data, or opacus does not support the
                model.

        """
        assert self._model is not None
        assert self.config.rate is not None
        examples, rate = Examples.of(data), self.config.rate
        self._examples = len(examples)
        noise = self.of_round
        if self.alone:
            grid = Grid.of(noise.multiplier * self.clip, 1, self.clip)
            self._sums = None
        else:
            most = largest(rate, max(told(float(len(examples)))))
            grid = noise.grid("update", most)
            self._sums = grid, int(math.ldexp(most * self.clip, -grid.exponent))
        chosen = [drawn(len(examples), rate) for _ in range(self.config.steps)]
        self._gradients = ExampleGradients(
            self._model,
            clip=self.clip,
            exponent=grid.exponent,
            expected=rate * len(examples),
            counts=[*map(len, chosen)],
            draw=_noise(grid) if self.alone else None,
        )
        given = examples.batches(chosen)
        self._gradients.attach()
        return given

    def end(self) -> None:
        """After training: remove the hooks, and keep what is to be sealed."""
        gradients, sums = self._gradients, None
        assert gradients is not None
        self._detach()
        gradients.check()
        if self._sums is not None:
            grid, most = self._sums
            every = self.of_round
            settings = [every.multiplier, every.honest, self.clip]
            rate = self.config.rate or 0.0
            sums = ExampleSums(gradients.sums, grid, most, rate, gradients.learning_rate, settings)
        self._trained.append((gradients, sums, self._examples))

    def outgoing(
        self, payload: Mapping[str, Tensor], base: Mapping[str, Tensor], samples: float
    ) -> Mapping[str, Tensor]:
        """The payload without its buffers, which are not sent.

        Raises:
            LockError: the silo's weight is not its number of examples, or the parameters are not
                those after the last step.

        """
        if not self._trained:
            raise LockError(f"{WHO}: there is no round's training to send")
        gradients, _, examples = self._trained[0]
        if samples != examples:
            raise LockError(
                f"{WHO}: the silo's data has more or fewer examples than FedML is told of: "
                "dataset[4] must have the number of its data"
            )
        gradients.check_sent(payload)
        self._check_rest(payload, base, gradients.sums)
        received = {name: base[name] for name in payload if name in self._buffers and name in base}
        return {**payload, **received}

    def release(
        self, payload: Mapping[str, Tensor]
    ) -> Callable[[Mapping[str, Tensor]], Release] | None:
        """What is sent of a payload, given the base of the difference."""
        gradients, sums, _ = self._trained.popleft()

        def of(base: Mapping[str, Tensor]) -> Release:
            assert sums is not None
            gradients.check_step(base, payload)
            return replace(sums, sums={n: own for n, own in sums.sums.items() if n in payload})

        return None if sums is None else of

    def audited(self, update: ClientUpdate) -> Release:
        """What is sent after one step on some pictures: their mean, as if the batch had no others.

        For one picture this is what a silo sends. For several, the mean is clipped, which leaves it
        at least as long as the mean of clipped gradients.
        """
        clip, count = update.learning_rate * self.clip, max(1.0, update.samples)
        every = self.of_round
        noise = RoundNoise(
            every.multiplier / count,
            every.silos,
            1 if self.alone else every.honest,
            {"update": clip},
        )
        payload = {**update.before, **update.after}
        return ClippedUpdate(noise, update.before, payload, self.parts(payload))

    @property
    def done(self) -> str:
        """Describe the steps behind the last sealed message, for the silo's own log."""
        mean = (self.config.rate or 0.0) * self._examples
        steps = self.config.steps
        return f"{steps} step{'s' * (steps != 1)} by batches of about {mean:.3g} examples"

    def _detach(self) -> None:
        if self._gradients is not None:
            self._gradients.detach()
            self._gradients = None


def _noise(grid: Grid) -> Callable[[int], NDArray[np.int32]]:
    """A function that draws noise from the system's entropy."""
    gaussian, stream = DiscreteGaussian(grid.deviation), Keystream(os.urandom(32))
    return lambda count: gaussian.draw(count, stream)
