"""Computes a linear tag over words: the sum of silos' tags is the tag of the summed words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .keystream import Keystream

__all__ = ["TAG_WORDS", "Tag", "join_tags", "split_tags"]

LIMB = 16
"""Bits of a tag in one word: sums over up to 32,768 silos stay below 2^31."""
LIMBS = 64 // LIMB
TAG_WORDS = 2 * LIMBS
"""Number of words for the two tags of a message."""


class Tag:
    """``t1 = sum r_j x_j`` and ``t2 = sum r_(j+1) x_j`` modulo 2^64, for words x in order.

    The r are one secret keystream, the x signed words of 32 bits. The two tags are two Toeplitz
    rows. A changed sum keeps both tags with probability 2^-66: the difference of two signed words
    is at most 2^31 times an odd number, so each tag misses a change with probability 2^-33.

    Args:
        key: 32 bytes, for one message.

    Example:
        >>> both, one, two = (Tag(bytes(32)) for _ in range(3))
        >>> x, y = np.array([1, -5], np.int32), np.array([7, 9], np.int32)
        >>> both.update(x + y); one.update(x); two.update(y)
        >>> both.value == tuple((a + b) % 2**64 for a, b in zip(one.value, two.value))
        True

    """

    def __init__(self, key: bytes) -> None:
        self._stream = Keystream(key)
        self._last = int(self._stream.longs(1)[0])
        self._sums = [0, 0]

    def update(self, words: NDArray[np.int32]) -> None:
        """Add the next words, ``(k,)``."""
        if not len(words):
            return
        secret, wide = self._stream.longs(len(words)), words.astype(np.int64)
        self._sums[0] += self._last * int(wide[0]) + int(np.dot(secret[:-1], wide[1:]))
        self._sums[1] += int(np.dot(secret, wide))
        self._last = int(secret[-1])

    @property
    def value(self) -> tuple[int, int]:
        """The two tags of all words so far, from 0 to 2^64 - 1."""
        return self._sums[0] % 2**64, self._sums[1] % 2**64


def split_tags(value: tuple[int, int]) -> NDArray[np.int32]:
    """Two tags as words of a message, ``(TAG_WORDS,)``, LIMB bits each.

    Example:
        >>> split_tags((1 << 16, 5)).tolist()
        [0, 1, 0, 0, 5, 0, 0, 0]

    """
    limbs = [(one >> (LIMB * k)) & (2**LIMB - 1) for one in value for k in range(LIMBS)]
    return np.array(limbs, dtype=np.int32)


def join_tags(words: NDArray[np.int32], silos: int) -> tuple[int, int] | None:
    """The sums of tags from the sums of their words: the inverse of `split_tags` for many silos.

    Args:
        words: ``(TAG_WORDS,)``.
        silos: how many sent them.

    Returns:
        None if no tags of so many silos have these sums. Otherwise a change of the words could
        shift a tag by one of several numbers, as its sums wrap or not, and each would be a guess.

    Example:
        >>> join_tags(split_tags((3, 5)) + split_tags((2**64 - 1, 1)), 2)
        (2, 6)
        >>> join_tags(split_tags((3, 5)) - 4, 2) is None
        True

    """
    if words.min() < 0 or words.max() > silos * (2**LIMB - 1):
        return None
    sums = [
        sum(int(word) << (LIMB * k) for k, word in enumerate(half)) % 2**64
        for half in (words[:LIMBS], words[LIMBS:])
    ]
    return sums[0], sums[1]
