"""A random orthogonal matrix, of any size, as something that can be applied and undone."""

from __future__ import annotations

import torch
from torch import Tensor

from ..entropy import Stream, haar

__all__ = ["Turn"]

BLOCK = 256
"""Rows of the matrices that a large turn is made of; up to twice this size it is a single one."""
PASSES = 5
"""Passes of a large turn, at the least. Each mixes blocks of BLOCK numbers. After three the numbers
at the ends, which a pass may leave out, are still to be told from others; after five a turned unit
vector looks like a uniform one at every size that was tried (513 to 61,000)."""


class Turn:
    """``Q x`` and ``Q^T y`` for one random orthogonal Q of ``(size, size)``.

    Up to 512 numbers Q is uniform over the orthogonal group (Mezzadri 2007). A uniform one of the
    millions of a model cannot be stored; there it is a product of five passes or more, each of
    secret signs, a secret uniform matrix on blocks of 256, and a transposition with its rows in
    secret order. It is computed in float64: what is lost is the rounding of what is sent.

    Args:
        size: how many numbers.
        stream: of secret bytes; the same one gives the same Q.

    Example:
        >>> turn, x = Turn(1000, Stream(b"secret")), torch.rand(1000)
        >>> bool((turn.undo(turn.apply(x)) - x).abs().max() < 1e-12)
        True
        >>> round(float(turn.apply(x).norm() / x.double().norm()), 6)
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
        """What a pass mixes: whole blocks, from the start and from the end in turns."""
        start = 0 if index % 2 == 0 else self.size - self._inside
        return x[start : start + self._inside]
