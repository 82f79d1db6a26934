"""Clips a silo's update and adds noise to it before it is sealed."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import ConfigError, LockError
from ...privacy.adaptive import vote
from ...tensors import real
from .encoding import CHUNK, Encoding, exponent_of
from .entries import Entry
from .gaussian import MOST, DiscreteGaussian
from .keystream import Keystream
from .shares import Shares

__all__ = ["ClippedUpdate", "Grid", "Noise", "Release", "RoundNoise"]

LEAST = 16
"""Least deviation of one silo's noise, in steps."""
TAIL = 14
"""How many deviations of noise a word has room for; no draw is further out."""
MARGIN = 1 - 2.0**-30
"""Factor on a clip, to allow for float64's rounding."""


@dataclass(frozen=True)
class Grid:
    """Fixed point for noised numbers, the same in all silos.

    Attributes:
        exponent: e of the step 2^e.
        deviation: of one silo's noise, in steps.
        bound: the bound on a silo's words, so that the sum of all silos fits 32 bits.

    """

    exponent: int
    deviation: float
    bound: int

    @classmethod
    def of(cls, deviation: float, silos: int, most: float) -> Grid:
        """The finest grid on which the sum of all silos fits 32 bits.

        Args:
            deviation: of one silo's noise.
            silos: how many take part.
            most: the largest number before noise.

        Raises:
            ConfigError: the noise is too small for so many silos: a step would exceed a sixteenth
                of its deviation.

        Example:
            >>> Grid.of(1.0, silos=3, most=1.0).exponent
            -16

        """
        bound = (2**31 - 1 - silos) // silos
        exponent = exponent_of(max((most + TAIL * deviation) / bound, deviation / MOST))
        steps = math.ldexp(deviation, -exponent)
        if steps < LEAST:
            raise ConfigError(
                f"keylock.noise: noise of {deviation:.2g} in each of {silos} silos, on numbers up "
                f"to {most:.2g}, does not fit 32 bits; raise multiplier"
            )
        return cls(exponent, steps, bound)


@dataclass(frozen=True)
class RoundNoise:
    """How much noise the silos add in a round: public, and the same in all of them.

    Attributes:
        multiplier: z of the clipped part.
        silos: m, how many take part.
        honest: H, how many of them add noise that the observer does not know.
        clips: the clipping norm of each part, ``update`` or ``buffer``.
        votes: the deviation of the noise on the sum of votes; 0 if nobody votes. A vote is 1 for an
            update within its clip, else -1.
        canaries: how many random directions of the clip's length one silo adds.

    """

    multiplier: float
    silos: int
    honest: int
    clips: Mapping[str, float]
    votes: float = 0.0
    canaries: int = 0

    def grid(self, part: str, most: float = 1.0) -> Grid:
        """The grid of a part.

        Args:
            part: ``update`` or ``buffer``.
            most: its largest number before noise, in clips.

        """
        clip = self.clips[part]
        own = self.multiplier * clip / math.sqrt(self.honest)
        # canaries' sums have no larger entry, unless the tensor has almost no entries
        return Grid.of(own, self.silos, (most + math.sqrt(self.canaries)) * clip)

    @property
    def vote_grid(self) -> Grid:
        """The grid for votes."""
        return Grid.of(self.votes / math.sqrt(self.honest), self.silos, 1.0)


class Release(ABC):
    """What a silo releases in a round under noise, before the noise is added.

    Attributes:
        grids: of each noised name; all other names are sent as unchanged.

    """

    grids: Mapping[str, Grid]

    def encoding(
        self,
        base: Mapping[str, Tensor],
        shares: Shares,
        sizes: Mapping[str, int] | None = None,
    ) -> Encoding:
        """The round's encoding; see `Encoding.of`."""
        noised = {name: grid.exponent for name, grid in self.grids.items()}
        return Encoding.of(base, shares, sizes, noised, self.scale(shares))

    @property
    @abstractmethod
    def public(self) -> Sequence[float]:
        """Numbers that must be the same in all silos for their sum to make sense."""

    @abstractmethod
    def scale(self, shares: Shares) -> float:
        """Factor in the average for a sum of words times their step."""

    @abstractmethod
    def words(self, entry: Entry) -> Iterator[NDArray[np.int32]]:
        """Yield a tensor's words in chunks, within the grid's bound."""

    def sent(self, entry: Entry, words: NDArray[np.int32]) -> NDArray[np.int32]:
        """A tensor's noised words as they leave the silo, in order."""
        return words

    @abstractmethod
    def vote(self) -> tuple[int, Grid] | None:
        """A word to add up beside the tensors, and its grid; None if nobody votes."""

    @abstractmethod
    def check(self) -> None:
        """After all words: check their norm.

        Raises:
            LockError: the norm exceeds the clip.

        """


class Noise:
    """Draws the discrete Gaussian noise of one message from the system's entropy."""

    def __init__(self) -> None:
        self._stream = Keystream(os.urandom(32))

    def over(self, words: NDArray[np.int32], grid: Grid) -> NDArray[np.int32]:
        """Add this silo's share of noise to each word, ``(count,)``."""
        drawn = _gaussian(grid.deviation).draw(len(words), self._stream)
        drawn += words
        return drawn


@lru_cache(maxsize=8)
def _gaussian(deviation: float) -> DiscreteGaussian:
    return DiscreteGaussian(deviation)


@dataclass
class ClippedUpdate(Release):
    """A silo's update, clipped as a whole and truncated toward zero to the grid.

    The integer norm is at most the clip, for any number of entries, so truncation costs no privacy.
    An update that is not finite is released as zero.

    Attributes:
        noise: of the round.
        base: the model that the update is a difference from.
        payload: name to tensor.
        parts: ``update`` or ``buffer`` for each noised name.
        norms: the L2 norm before clipping, by part.

    """

    noise: RoundNoise
    base: Mapping[str, Tensor] = field(repr=False)
    payload: Mapping[str, Tensor] = field(repr=False)
    parts: Mapping[str, str]
    norms: dict[str, float] = field(init=False)
    grids: Mapping[str, Grid] = field(init=False)

    def __post_init__(self) -> None:
        squares = dict.fromkeys(self.noise.clips, 0.0)
        for name, part in self.parts.items():
            for moved in self._moved(name):
                squares[part] += float(moved @ moved)
        self.norms = {part: math.sqrt(square) for part, square in squares.items()}
        grids = {part: self.noise.grid(part) for part in {*self.parts.values()}}
        self.grids = {name: grids[part] for name, part in self.parts.items()}
        self._sent = dict.fromkeys(squares, 0.0)

    @property
    def public(self) -> Sequence[float]:
        """The clips and deviations."""
        every, clips = self.noise, self.noise.clips
        return [every.multiplier, every.honest, every.votes, *(clips[p] for p in sorted(clips))]

    @property
    def infinite(self) -> bool:
        """Whether the update has numbers that are NaN or infinite."""
        return not all(map(math.isfinite, self.norms.values()))

    def scale(self, shares: Shares) -> float:
        """That of a plain mean: weights are public, and all equal."""
        return 1 / len(shares.samples)

    def words(self, entry: Entry) -> Iterator[NDArray[np.int32]]:
        """The clipped difference in steps, truncated toward zero."""
        part = self.parts[entry.name]
        norm, clip = self.norms[part], self.noise.clips[part]
        factor = 0.0 if self.infinite else min(1.0, clip * MARGIN / norm if norm else 1.0)
        factor *= 2.0 ** -self.grids[entry.name].exponent
        for moved in self._moved(entry.name):
            if not factor:
                moved.zero_()
            moved.mul_(factor).trunc_()
            self._sent[part] += float(moved @ moved)
            yield moved.numpy().astype(np.int32)

    def vote(self) -> tuple[int, Grid] | None:
        """Vote whether the update was within its clip."""
        if not self.noise.votes:
            return None
        grid = self.noise.vote_grid
        cast = vote(self.norms["update"], self.noise.clips["update"])
        return round(math.ldexp(cast, -grid.exponent)), grid

    def check(self) -> None:
        """Check the norm of the released words."""
        for part, square in self._sent.items():
            clip = self.noise.clips[part]
            if square > math.ldexp(clip, -self.noise.grid(part).exponent) ** 2:
                raise LockError(f"the clipped {part} is longer than its clip of {clip:g}")
        self._sent = dict.fromkeys(self._sent, 0.0)  # words may be asked for once more

    def _moved(self, name: str) -> Iterator[Tensor]:
        """The change of a tensor, in float64, in chunks."""
        own = real(self.payload[name]).detach().cpu().reshape(-1)
        base = real(self.base[name]).detach().cpu().reshape(-1)
        for start in range(0, len(own), CHUNK):
            since = base[start : start + CHUNK].double()
            moved = own[start : start + CHUNK].to(torch.float64, copy=True)
            moved -= since
            if not math.isfinite(float(since.sum())):
                moved[~torch.isfinite(since)] = 0.0  # entries that were not finite stay as they are
            yield moved
