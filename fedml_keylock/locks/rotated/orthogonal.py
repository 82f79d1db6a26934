"""Makes random orthogonal matrices of any size, to apply and to undo."""

from __future__ import annotations

import torch
from torch import Tensor

from ..entropy import Stream, haar

__all__ = ["OrthogonalMatrix"]

BLOCK = 256
"""Rows of the blocks in a large matrix; up to twice this size it is a single block."""
PASSES = 5
"""Least number of passes for a large matrix. Each pass mixes blocks of BLOCK numbers. After three,
the numbers at the ends, which a pass may leave out, can still be told from others. After five, a
rotated unit vector looks uniform at every size that was tried (513 to 61,000)."""


class OrthogonalMatrix:
    """A random orthogonal matrix Q of ``(size, size)``: ``Q x`` and ``Q^T y``.

    Up to 512 numbers Q is uniform over the orthogonal group (Mezzadri 2007). A uniform one for the
    millions of numbers of a model cannot be stored. There it is a product of five passes or more,
    each of secret signs, a secret uniform matrix on blocks of 256, and a transposition with its
    rows in secret order. It is computed in float64, so that only the rounding of what is sent is
    lost.

    Args:
        size: how many numbers.
        stream: of secret bytes; the same stream gives the same Q.

    Example:
        >>> matrix, x = OrthogonalMatrix(1000, Stream(b"secret")), torch.rand(1000)
        >>> bool((matrix.undo(matrix.apply(x)) - x).abs().max() < 1e-12)
        True
        >>> round(float(matrix.apply(x).norm() / x.double().norm()), 6)
        1.0

    """

    def __init__(self, size: int, stream: Stream) -> None:
        self.size = size
        self._single: Tensor | None = None
        self._passes: list[tuple[Tensor, Tensor, Tensor]] = []
        if size <= 2 * BLOCK:
            self._single = haar(size, stream.uniform)
            return
        self._rows = size // BLOCK
        self._inside = self._rows * BLOCK
        while len(self._passes) < PASSES or BLOCK ** (len(self._passes) - 2) < size:
            block = haar(BLOCK, stream.uniform)
            self._passes.append((stream.signs(self._inside), block, stream.order(self._rows)))

    def apply(self, x: Tensor) -> Tensor:
        """``Q x`` of a vector ``(size,)``, in float64."""
        if self._single is not None:
            return self._single @ x.double()
        x = x.to(torch.float64, copy=True)
        for index, (signs, block, order) in enumerate(self._passes):
            part = self._window(x, index)
            mixed = (signs * part).view(self._rows, BLOCK) @ block
            part.view(BLOCK, self._rows).copy_(mixed[order].mT)
        return x

    def undo(self, y: Tensor) -> Tensor:
        """``Q^T y`` of a vector ``(size,)``, in float64."""
        if self._single is not None:
            return self._single.mT @ y.double()
        y = y.to(torch.float64, copy=True)
        for index, (signs, block, order) in reversed([*enumerate(self._passes)]):
            part = self._window(y, index)
            mixed = part.view(BLOCK, self._rows).mT.contiguous()[order.argsort()]
            part.copy_(signs * (mixed @ block.mT).flatten())
        return y

    def _window(self, x: Tensor, index: int) -> Tensor:
        """The numbers that a pass mixes: whole blocks, alternately from the start and the end."""
        start = 0 if index % 2 == 0 else self.size - self._inside
        return x[start : start + self._inside]
