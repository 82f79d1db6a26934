"""Secrets from the operating system's entropy.

Never from torch's or numpy's global generators: FedML seeds those alike on every rank, so a key
drawn from them would be the same in every silo and known to whoever knows `random_seed`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Uniform",
    "draw_key",
    "normal",
    "orthogonal",
    "secret_uniform",
    "seeded_uniform",
    "uniform_of",
]

Uniform = Callable[[tuple[int, ...]], Tensor]
"""Draws float32 numbers in [0, 1) of a shape: from the system's entropy, or for an attacker who
simulates locks, from a generator."""


def secret_uniform(shape: tuple[int, ...]) -> Tensor:
    """Uniform float32 numbers in [0, 1) from the operating system's entropy, 24 bits each.

    Example:
        >>> secret_uniform((2, 3)).shape
        torch.Size([2, 3])

    """
    return uniform_of(os.urandom(4 * math.prod(shape)), shape)


def uniform_of(data: bytes, shape: tuple[int, ...]) -> Tensor:
    """Uniform float32 numbers in [0, 1) of random bytes, four each.

    Example:
        >>> uniform_of(bytes([0, 0, 0, 64]), (1,))
        tensor([0.2500])

    """
    words = np.frombuffer(data, dtype="<u4")
    return torch.from_numpy((words >> 8).astype(np.float32) * np.float32(2**-24)).reshape(shape)


def seeded_uniform(generator: torch.Generator) -> Uniform:
    """The same distribution from a generator: for attackers and tests, never for a silo's lock.

    Example:
        >>> seeded_uniform(torch.Generator().manual_seed(0))((2,)).shape
        torch.Size([2])

    """
    return lambda shape: torch.rand(shape, generator=generator)


def normal(shape: tuple[int, ...], uniform: Uniform = secret_uniform) -> Tensor:
    """Standard normal numbers, by the inverse of the normal distribution function.

    Example:
        >>> normal((4,)).shape
        torch.Size([4])

    """
    # half a step keeps the argument inside (-1, 1), where erfinv is finite; in this order of
    # operations float32 rounds nothing
    standard: Tensor = torch.erfinv(2 * uniform(shape) - 1 + 2**-24) * math.sqrt(2)
    return standard


BLOCK = 256
"""Up to twice this size a mixing matrix is uniform over the orthogonal group."""


def orthogonal(size: int, uniform: Uniform = secret_uniform) -> Tensor:
    """A random orthogonal matrix ``(size, size)``.

    Up to 512 it is uniform over the orthogonal group: QR of a normal matrix, with the signs of R's
    diagonal divided out (Mezzadri, "How to generate random matrices from the classical compact
    groups", 2007). QR of the widest layers in use takes minutes; there it is a product of two
    matrices of such blocks with random permutations between them, in which every output depends on
    every input too.

    Example:
        >>> m = orthogonal(5)
        >>> torch.allclose(m @ m.T, torch.eye(5), atol=1e-5)
        True

    """
    if size <= 2 * BLOCK:
        q, r = torch.linalg.qr(normal((size, size), uniform))
        rotation: Tensor = (q * r.diagonal().sign()).contiguous()
        return rotation
    count = -(-size // BLOCK)
    sizes = [size // count + (index < size % count) for index in range(count)]
    first, second = (
        torch.block_diag(*(orthogonal(n, uniform) for n in sizes))  # type: ignore[no-untyped-call]  # torch has none
        for _ in range(2)
    )
    order = uniform((size,)).argsort()
    return _times_blocks(first[:, order], second, sizes)[:, uniform((size,)).argsort()]


def _times_blocks(left: Tensor, blocks: Tensor, sizes: list[int]) -> Tensor:
    """``left @ blocks``, where blocks is block-diagonal: only the blocks are multiplied."""
    edges = [sum(sizes[:index]) for index in range(len(sizes) + 1)]
    parts = [left[:, a:b] @ blocks[a:b, a:b] for a, b in pairwise(edges)]
    return torch.cat(parts, 1)


def draw_key(length: int, uniform: Uniform = secret_uniform) -> Tensor:
    """A key ``(length,)``: uniform numbers scaled to unit length.

    The reference draws the same uniform numbers and leaves them as they are, so that the lock's
    step size grows with the key's length: a gradient step on W moves W k by |k|^2 times the step
    that gamma would take by itself (|k|^2 is about 341 for 1,024 numbers), and training diverges
    when every layer is locked. At unit length a learning rate that suits the model suits the lock.

    Example:
        >>> round(float(draw_key(1024).norm()), 3)
        1.0

    """
    key = uniform((length,)) + 2**-25  # a key of zeros could not be scaled
    unit: Tensor = key / key.norm()
    return unit
