"""Draws secrets from the operating system's entropy.

Never from torch's or numpy's global generators: FedML seeds those alike on every rank. A key drawn
from them would be the same in every silo, and known to anyone who knows `random_seed`.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable

import numpy as np
import torch
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from torch import Tensor

__all__ = [
    "Stream",
    "Uniform",
    "haar",
    "hkdf",
    "normal",
    "secret_uniform",
    "seeded_uniform",
    "uniform_of",
]

Uniform = Callable[[tuple[int, ...]], Tensor]
"""Draws float32 numbers in [0, 1) of a given shape: from the system's entropy, or from a seeded
generator for an attacker who simulates locks."""


def secret_uniform(shape: tuple[int, ...]) -> Tensor:
    """Uniform float32 numbers in [0, 1) from the operating system's entropy, 24 bits each."""
    return uniform_of(os.urandom(4 * math.prod(shape)), shape)


def uniform_of(data: bytes, shape: tuple[int, ...]) -> Tensor:
    """Uniform float32 numbers in [0, 1) from random bytes, four bytes each.

    Example:
        >>> uniform_of(bytes([0, 0, 0, 64]), (1,))
        tensor([0.2500])

    """
    words = np.frombuffer(data, dtype="<u4")
    return torch.from_numpy((words >> 8).astype(np.float32) * np.float32(2**-24)).reshape(shape)


def hkdf(secret: bytes, info: bytes) -> bytes:
    """Derive 32 bytes for the purpose that `info` names: HKDF-SHA256 (RFC 5869), no salt.

    Example:
        >>> hkdf(bytes(32), b"one") == hkdf(bytes(32), b"another")
        False

    """
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)


class Stream:
    """A pseudorandom stream that everyone who has the seed can repeat.

    SHAKE-256 of the seed and a counter (FIPS 202): without the seed nobody can tell it from random
    bytes, or predict one part from another.

    Example:
        >>> torch.equal(Stream(b"seed").uniform((3,)), Stream(b"seed").uniform((3,)))
        True

    """

    def __init__(self, seed: bytes) -> None:
        self._seed = hashlib.sha256(seed).digest()
        self._drawn = 0

    def draw(self, count: int) -> bytes:
        """The next `count` bytes."""
        block = hashlib.shake_256(self._seed + self._drawn.to_bytes(8, "big"))
        self._drawn += 1
        return block.digest(count)

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """Uniform float32 numbers in [0, 1), 24 bits each."""
        return uniform_of(self.draw(4 * math.prod(shape)), shape)

    def signs(self, count: int) -> Tensor:
        """`count` random signs, 1 or -1, one byte each."""
        bits = np.unpackbits(np.frombuffer(self.draw(-(-count // 8)), dtype=np.uint8))[:count]
        return torch.from_numpy(1 - 2 * bits.astype(np.int8))

    def order(self, count: int) -> Tensor:
        """A random permutation of `count` items."""
        words = np.frombuffer(self.draw(8 * count), dtype="<u8")
        # a stable sort breaks ties in the same way on every machine
        return torch.from_numpy(np.argsort(words, kind="stable"))


def seeded_uniform(generator: torch.Generator) -> Uniform:
    """Draws uniform numbers from a generator: for attackers and tests, never for a silo's lock."""
    return lambda shape: torch.rand(shape, generator=generator)


def normal(shape: tuple[int, ...], uniform: Uniform = secret_uniform) -> Tensor:
    """Standard normal numbers, by the inverse of the normal distribution function."""
    # half a step keeps the argument inside (-1, 1), where erfinv is finite; float32 rounds nothing
    # in this order of operations
    standard: Tensor = torch.erfinv(2 * uniform(shape) - 1 + 2**-24) * math.sqrt(2)
    return standard


def haar(size: int, uniform: Uniform = secret_uniform) -> Tensor:
    """A matrix ``(size, size)``, uniform over the orthogonal group, in float64.

    QR of a normal matrix, with the signs of R's diagonal divided out (Mezzadri, "How to generate
    random matrices from the classical compact groups", 2007).

    Example:
        >>> m = haar(5)
        >>> torch.allclose(m @ m.T, torch.eye(5, dtype=torch.float64))
        True

    """
    q, r = torch.linalg.qr(normal((size, size), uniform).double())
    rotation: Tensor = (q * r.diagonal().sign()).contiguous()
    return rotation
