"""Canaries in a release: further units that one silo adds, and what the sums tell of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...privacy.canaries import Canaries
from ...tensors import real
from .encoding import Encoding
from .entries import Entry
from .noise import Grid, Release
from .shares import Shares

__all__ = ["CanaryRelease"]


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
        return words + self._added[entry.name][start : start + len(words)]

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
        parts = []
        for name in self._names:
            moved = real(state[name]).cpu().double() - real(encoding.base[name]).cpu().double()
            own = np.concatenate(self._own[name]) * 2.0 ** self.grids[name].exponent
            parts.append(moved.reshape(-1).numpy() / encoding.scale - own)
        self._canaries.see(np.concatenate(parts), self._clip)


def _steps(part: NDArray[np.float64], grid: Grid, most: float) -> NDArray[np.int32]:
    """Numbers in steps of a grid, rounded at random, so that many small ones are not lost.

    They are clamped to what the grid has room for.
    """
    exact = np.clip(part, -most, most) * 2.0**-grid.exponent
    low = np.floor(exact)
    up = np.random.default_rng().random(len(exact)) < exact - low
    return (low + up).astype(np.int32)
