"""Canaries in a release: further units that one silo adds, and what the sums tell of them."""

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
    """A release to which canaries are added, after its clip and its noise.

    They are nobody's data, and no part of what the release's norm is checked for.

    Args:
        release: the silo's own.
        canaries: of the job.
        clip: the length of each, as a unit's.
        names: of the tensors that they are in, together one vector, with how many entries each has.

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
        """As the release's own."""
        return self.release.public

    def scale(self, shares: Shares) -> float:
        """As the release's own."""
        return self.release.scale(shares)

    def words(self, entry: Entry) -> Iterator[NDArray[np.int32]]:
        """The release's own."""
        self._own[entry.name] = []
        return self.release.words(entry)

    def sent(self, entry: Entry, words: NDArray[np.int32]) -> NDArray[np.int32]:
        """Noised words with the canaries' steps on them."""
        if entry.name not in self._added:
            return words
        own = self._own[entry.name]
        start = sum(map(len, own))
        own.append(words.copy())
        return np.add(words, self._added[entry.name][start : start + len(words)])

    def vote(self) -> tuple[int, Grid] | None:
        """The release's own."""
        return self.release.vote()

    def check(self) -> None:
        """Check the release's own norm."""
        self.release.check()

    def see(self, state: Mapping[str, Tensor], encoding: Encoding) -> None:
        """Take note of the round's average, as a colluding silo sees it: less all that it sent.

        Args:
            state: the average, as it was opened.
            encoding: of the round.

        """
        if not encoding.scale:  # a learning rate of 0: the average says nothing
            return
        parts = []
        for name in self._names:
            moved = real(state[name]).cpu().double() - real(encoding.base[name]).cpu().double()
            own = np.concatenate(self._own[name]) * 2.0 ** self.grids[name].exponent
            parts.append(moved.reshape(-1).numpy() / encoding.scale - own)
        self._canaries.see(np.concatenate(parts), self._clip)


def _steps(part: NDArray[np.float64], grid: Grid, most: float) -> NDArray[np.int32]:
    """Numbers in steps of a grid, clamped to what it has room for."""
    exact: NDArray[np.float64] = np.clip(part, -most, most) * 2.0**-grid.exponent
    return np.rint(exact).astype(np.int32)


@dataclass
class CanaryWatch:
    """The canaries of a job, in the silo that adds them.

    Attributes:
        config: the YAML's section.

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
        """The same release, with canaries.

        Args:
            release: of the payload, from the base that it is a difference from.
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
        """Take note of a round's average, where canaries are in it."""
        if self._sent is not None and record is not None:
            self._sent.see(state, record.encoding)
            self._sent, self._rounds = None, self._rounds + 1

    def estimate(self, multiplier: float) -> CanaryEstimate | None:
        """Of all rounds so far, with the accountant's bound; None where no average was seen.

        Args:
            multiplier: of the noise.

        """
        if self._canaries is None or not self._rounds:
            return None
        one, delta = spending_of(self.config, multiplier), self.config.delta
        bound = epsilon_of([replace(one, count=one.count * self._rounds)], delta)
        return replace(self._canaries.estimate(delta), bound=bound)


def released(
    noise: JobNoise, payload: Mapping[str, Tensor], canaries: CanaryWatch | None, silo: int
) -> Callable[[Mapping[str, Tensor]], Release] | None:
    """What a silo releases of a payload; the first silo of a round adds the canaries, if any.

    Args:
        noise: of the job.
        payload: name to tensor.
        canaries: of the job.
        silo: by its place among those that have agreed, from 0.

    """
    release = noise.release(payload)
    if release is None or canaries is None or silo:
        return release
    return canaries.over(release, noise, payload)
