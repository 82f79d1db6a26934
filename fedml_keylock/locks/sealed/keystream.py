"""Derives keys by HKDF, and expands each into an AES-256-CTR keystream for one purpose."""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from ..entropy import hkdf

__all__ = ["Keystream", "derive", "framed"]

_ZEROS = bytes(1 << 21)


def framed(*parts: bytes) -> bytes:
    """Join parts, each after its length in 8 bytes, so that different lists give different bytes.

    Example:
        >>> framed(b"a", b"bc") == framed(b"ab", b"c")
        False

    """
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def derive(secret: bytes, label: str, *context: bytes) -> bytes:
    """Derive a key of 32 bytes for one purpose; see `entropy.hkdf`.

    Args:
        secret: 32 bytes.
        label: of the purpose.
        context: whatever the key is bound to.

    Example:
        >>> derive(bytes(32), "pad").hex()[:16]
        '21674c7a3ce55e2b'

    """
    info = framed(b"fedml-keylock sealed 1", label.encode(), *context)
    return hkdf(secret, info)


class Keystream:
    """The words of one key, in order; none is given twice.

    AES-256 in counter mode (NIST SP 800-38A) from counter 0. A key makes one keystream only.

    Args:
        key: 32 bytes.

    Example:
        >>> one, two = Keystream(bytes(32)), Keystream(bytes(32))
        >>> bool((one.words(6) == np.concatenate([two.words(2), two.words(4)])).all())
        True

    """

    def __init__(self, key: bytes) -> None:
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def words(self, count: int) -> NDArray[np.int32]:
        """The next `count` words of 32 bits, ``(count,)``, little-endian."""
        return np.frombuffer(self._draw(4 * count), dtype="<i4")

    def shorts(self, count: int) -> NDArray[np.uint16]:
        """The next `count` unsigned words of 16 bits, ``(count,)``, little-endian."""
        return np.frombuffer(self._draw(2 * count), dtype="<u2")

    def longs(self, count: int) -> NDArray[np.int64]:
        """The next `count` words of 64 bits, ``(count,)``, little-endian."""
        return np.frombuffer(self._draw(8 * count), dtype="<i8")

    def _draw(self, size: int) -> bytes:
        zeros = _ZEROS if size == len(_ZEROS) else memoryview(_ZEROS)[:size]
        return self._encryptor.update(zeros if size <= len(_ZEROS) else bytes(size))
