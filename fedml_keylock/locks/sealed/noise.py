"""Noise under the seal: what a silo sends of an update that is clipped and noised."""

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
"""Steps that one silo's deviation has at least."""
TAIL = 14
"""Deviations that a word has room for: no draw is further out."""
MARGIN = 1 - 2.0**-30
"""Of a clip: what float64 may round."""


@dataclass(frozen=True)
class Grid:
    """Fixed point of noised numbers, the same in all silos.

    Attributes:
        exponent: e of the step 2^e.
        deviation: of one silo's noise, in steps.
        bound: what a silo's words are clamped to, which no sum of all silos' leaves 32 bits by.

    """

    exponent: int
    deviation: float
    bound: int

    @classmethod
    def of(cls, deviation: float, silos: int, most: float) -> Grid:
        """The finest grid on which sums stay within 32 bits.

        Args:
            deviation: of one silo's noise.
            silos: how many take part.
            most: the largest number before noise.

        Raises:
            ConfigError: the noise is too little for so many silos: a step would be more than a
                sixteenth of its deviation.

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
                f"to {most:.2g}, has no room in 32 bits; raise multiplier"
            )
        return cls(exponent, steps, bound)


@dataclass(frozen=True)
class RoundNoise:
    """How much noise the silos of a job add in a round: public, and the same in all of them.

    Attributes:
        multiplier: z of what is clipped.
        silos: m, how many take part.
        honest: H, how many of them add noise that an observer does not know.
        clips: by the part of what is sent, ``update`` or ``buffer``, the norm it is clipped to.
        votes: the deviation of the noise on the sum of votes, 1 or -1 for an update within its clip
            or beyond; 0 where nobody votes.
        canaries: random directions of the clip's length that one silo adds.

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
            part: of what is sent.
            most: its largest number before noise, in clips.

        """
        clip = self.clips[part]
        own = self.multiplier * clip / math.sqrt(self.honest)
        # no entry of the canaries' sum is larger, unless there are next to no entries
        return Grid.of(own, self.silos, (most + math.sqrt(self.canaries)) * clip)

    @property
    def vote_grid(self) -> Grid:
        """The grid of votes."""
        return Grid.of(self.votes / math.sqrt(self.honest), self.silos, 1.0)


class Release(ABC):
    """What a silo releases in a round under noise, before the noise.

    Attributes:
        grids: of each name that is noised; all other names are sent as unchanged.

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
        """What all silos must have in common for their sum to mean anything."""

    @abstractmethod
    def scale(self, shares: Shares) -> float:
        """What a sum of words times their step is multiplied by in the average."""

    @abstractmethod
    def words(self, entry: Entry) -> Iterator[NDArray[np.int32]]:
        """A tensor's words, some at a time: of a size for which the grid has room."""

    def sent(self, entry: Entry, words: NDArray[np.int32]) -> NDArray[np.int32]:
        """Words of a tensor with noise on them, in their order, as they leave the silo."""
        return words

    @abstractmethod
    def vote(self) -> tuple[int, Grid] | None:
        """A word to be added up beside them, and its grid; None where nobody votes."""

    @abstractmethod
    def check(self) -> None:
        """After all words were given: check their norm.

        Raises:
            LockError: it is above the clip.

        """


class Noise:
    """Discrete Gaussian noise of one message, from the system's entropy."""

    def __init__(self) -> None:
        self._stream = Keystream(os.urandom(32))

    def over(self, words: NDArray[np.int32], grid: Grid) -> NDArray[np.int32]:
        """Words with this silo's share of noise on each, ``(count,)``."""
        drawn = _gaussian(grid.deviation).draw(len(words), self._stream)
        drawn += words
        return drawn


@lru_cache(maxsize=8)
def _gaussian(deviation: float) -> DiscreteGaussian:
    return DiscreteGaussian(deviation)


@dataclass
class ClippedUpdate(Release):
    """A silo's update, clipped as a whole and truncated toward zero to the grid.

    The integer norm is at most the clip's, whatever the number of entries; so truncation costs no
    privacy. An update that is not finite is released as none.

    Attributes:
        noise: of the round.
        base: what the update is a difference from.
        payload: name to tensor.
        parts: of each name that is noised, ``update`` or ``buffer``.
        norms: by part, the L2 norm before clipping.

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
        """Clips and deviations."""
        every, clips = self.noise, self.noise.clips
        return [every.multiplier, every.honest, every.votes, *(clips[p] for p in sorted(clips))]

    @property
    def infinite(self) -> bool:
        """Whether the update has numbers that are NaN or infinite."""
        return not all(map(math.isfinite, self.norms.values()))

    def scale(self, shares: Shares) -> float:
        """A mean: shares are public, and all the same."""
        return 1 / len(shares.samples)

    def words(self, entry: Entry) -> Iterator[NDArray[np.int32]]:
        """The clipped difference in steps, toward zero."""
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
        """Whether the update was within its clip."""
        if not self.noise.votes:
            return None
        grid = self.noise.vote_grid
        cast = vote(self.norms["update"], self.noise.clips["update"])
        return round(math.ldexp(cast, -grid.exponent)), grid

    def check(self) -> None:
        """Check the norm of what was given."""
        for part, square in self._sent.items():
            clip = self.noise.clips[part]
            if square > math.ldexp(clip, -self.noise.grid(part).exponent) ** 2:
                raise LockError(f"the clipped {part} is longer than its clip of {clip:g}")
        self._sent = dict.fromkeys(self._sent, 0.0)  # it may be asked for once more

    def _moved(self, name: str) -> Iterator[Tensor]:
        """What a tensor has moved by, in float64, some entries at a time."""
        own = real(self.payload[name]).detach().cpu().reshape(-1)
        base = real(self.base[name]).detach().cpu().reshape(-1)
        for start in range(0, len(own), CHUNK):
            since = base[start : start + CHUNK].double()
            moved = own[start : start + CHUNK].to(torch.float64, copy=True)
            moved -= since
            if not math.isfinite(float(since.sum())):
                moved[~torch.isfinite(since)] = 0.0  # what came infinite stays what it is
            yield moved
