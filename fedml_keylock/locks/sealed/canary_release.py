"""Adds canaries to one silo's sums, and estimates epsilon from the averages."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...privacy.accountant import epsilon_of, spending_of
from ...privacy.canaries import Canaries, CanaryEstimate
from ...privacy.noise_config import NoiseConfig
from ...tensors import real
from .encoding import Encoding
from .entries import Entry
from .job_noise import JobNoise
from .noise import Grid, Release
from .record import Record
from .shares import Shares

__all__ = ["CanaryRelease", "CanaryWatch", "released"]


class CanaryRelease(Release):
    """A release with canaries added after clipping and noise.

    Canaries are nobody's data, and do not count in the release's norm.

    Args:
        release: the silo's own.
        canaries: of the job.
        clip: the length of each canary, the same as the clip of a unit.
        names: the tensors that hold the canaries, together one vector, and their numbers of
            entries.

    """

    def __init__(
        self, release: Release, canaries: Canaries, clip: float, names: Mapping[str, int]
    ) -> None:
        self.release, self.grids = release, release.grids
        self._canaries, self._clip, self._names = canaries, clip, names
        cuts = np.cumsum([*names.values()])[:-1]
        parts = np.split(canaries.added(clip), cuts)
        self._added = {
            name: _steps(part, self.grids[name], clip * math.sqrt(canaries.count))
            for name, part in zip(names, parts, strict=True)
        }
        self._own: dict[str, list[NDArray[np.int32]]] = {}

    @property
    def public(self) -> Sequence[float]:
        """The same as of the silo's own release."""
        return self.release.public

    def scale(self, shares: Shares) -> float:
        """The same as of the silo's own release."""
        return self.release.scale(shares)

    def words(self, entry: Entry) -> Iterator[NDArray[np.int32]]:
        """The words of the silo's own release."""
        self._own[entry.name] = []
        return self.release.words(entry)

    def sent(self, entry: Entry, words: NDArray[np.int32]) -> NDArray[np.int32]:
        """The noised words with the canaries added."""
        if entry.name not in self._added:
            return words
        own = self._own[entry.name]
        start = sum(map(len, own))
        own.append(words.copy())
        return np.add(words, self._added[entry.name][start : start + len(words)])

    def vote(self) -> tuple[int, Grid] | None:
        """The vote of the silo's own release."""
        return self.release.vote()

    def check(self) -> None:
        """Check the norm of the silo's own release."""
        self.release.check()

    def see(self, state: Mapping[str, Tensor], encoding: Encoding) -> None:
        """Record the round's average as a colluding silo sees it: without what this silo sent.

        Args:
            state: the average, after opening.
            encoding: of the round.

        """
        if not encoding.scale:  # with a learning rate of 0 the average shows nothing
            return
        parts = []
        for name in self._names:
            moved = real(state[name]).cpu().double() - real(encoding.base[name]).cpu().double()
            own = np.concatenate(self._own[name]) * 2.0 ** self.grids[name].exponent
            parts.append(moved.reshape(-1).numpy() / encoding.scale - own)
        self._canaries.see(np.concatenate(parts), self._clip)


def _steps(part: NDArray[np.float64], grid: Grid, most: float) -> NDArray[np.int32]:
    """Round numbers to steps of a grid, clamped to its range."""
    exact: NDArray[np.float64] = np.clip(part, -most, most) * 2.0**-grid.exponent
    return np.rint(exact).astype(np.int32)


@dataclass
class CanaryWatch:
    """The canaries of a job, held by the silo that adds them.

    Attributes:
        config: the noise section of the YAML.

    """

    config: NoiseConfig
    _canaries: Canaries | None = field(default=None, repr=False)
    _sent: CanaryRelease | None = field(default=None, repr=False)
    _rounds: int = 0

    def over(
        self,
        release: Callable[[Mapping[str, Tensor]], Release],
        noise: JobNoise,
        payload: Mapping[str, Tensor],
    ) -> Callable[[Mapping[str, Tensor]], Release]:
        """Add canaries to a release.

        Args:
            release: makes the payload's release from the base of the difference.
            noise: of the job.
            payload: name to tensor.

        """
        names = {
            name: real(payload[name]).numel()
            for name, part in noise.parts(payload).items()
            if part == "update"
        }
        size = sum(names.values())
        if self._canaries is None:
            count, rate = self.config.canaries, self.config.rate or 1.0
            self._canaries = Canaries(count, size, rate=rate)
            of_round = noise.of_round
            deviation = of_round.multiplier * math.sqrt(of_round.silos / of_round.honest)
            logging.info(
                "%d canaries, random directions, are added to each sum; together they are %.2g "
                "times as long as its noise",
                count,
                math.sqrt(rate * count / size) / deviation,
            )
        canaries, clip = self._canaries, noise.clip

        def of(base: Mapping[str, Tensor]) -> Release:
            self._sent = CanaryRelease(release(base), canaries, clip, names)
            return self._sent

        return of

    def see(self, state: Mapping[str, Tensor], record: Record | None) -> None:
        """Record a round's average if canaries were added to it."""
        if self._sent is not None and record is not None:
            self._sent.see(state, record.encoding)
            self._sent, self._rounds = None, self._rounds + 1

    def estimate(self, multiplier: float) -> CanaryEstimate | None:
        """Estimate epsilon from all rounds so far, beside the accountant's bound.

        Args:
            multiplier: of the noise.

        Returns:
            None if no average was seen.

        """
        if self._canaries is None or not self._rounds:
            return None
        one, delta = spending_of(self.config, multiplier), self.config.delta
        bound = epsilon_of([replace(one, count=one.count * self._rounds)], delta)
        return replace(self._canaries.estimate(delta), bound=bound)


def released(
    noise: JobNoise, payload: Mapping[str, Tensor], canaries: CanaryWatch | None, silo: int
) -> Callable[[Mapping[str, Tensor]], Release] | None:
    """What a silo releases of a payload; the round's first silo adds the canaries, if any.

    Args:
        noise: of the job.
        payload: name to tensor.
        canaries: of the job.
        silo: its index among the silos that have agreed on keys, from 0.

    """
    release = noise.release(payload)
    if release is None or canaries is None or silo:
        return release
    return canaries.over(release, noise, payload)
