"""What may be private on a layer beside gamma and beta, how it is drawn, and what it is for nobody.

Everything here is a tensor by a name, so that a lock, an attacker's unknowns and an export read the
same ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .key import Uniform, normal, orthogonal

__all__ = [
    "MIXINGS",
    "PIECES",
    "Pieces",
    "dense",
    "draw_pieces",
    "neutral",
    "size_of",
    "spread",
    "transposed",
    "turn",
]

MIXINGS = ("mixing", "mixing_inputs", "mixing_positions")
"""Names of the matrices."""
PIECES = (*MIXINGS, "own_weight", "own_bias", "map_scale", "map_shift")
"""Names of everything."""
BLOCK = 8
"""How many channels a block of a grouped mixing has, at the most."""
REFLECTIONS = 8
"""How many reflections a Householder mixing is made of; an even number of equal ones is none."""
MAP_SPREAD = 0.7
"""How far from 1 a new map of scales lies, at the most: as far as a new gamma."""
SHIFT_SPREAD = 0.3
"""Standard deviation of a new map of shifts."""


@dataclass(frozen=True)
class Pieces:
    """What is private on one layer beside gamma and beta.

    Attributes:
        mixing: how many output channels a private matrix mixes; 0 for none.
        inputs: how many input channels another one mixes.
        positions: how many positions of each input channel a third one mixes: of a head.
        own: shape of the layer's weight, which is private itself; () for none.
        own_bias: whether its bias is, with it.
        map: side of the square grids of scales and shifts over each channel's map.
        channels: of the grids.

    Example:
        >>> Pieces(mixing=4) == Pieces(), Pieces() == Pieces(own=())
        (False, True)

    """

    mixing: int = 0
    inputs: int = 0
    positions: int = 0
    own: tuple[int, ...] = ()
    own_bias: bool = False
    map: int = 0
    channels: int = 0


def draw_pieces(pieces: Pieces, form: str, uniform: Uniform) -> dict[str, Tensor]:
    """Each piece newly drawn.

    Args:
        pieces: which.
        form: of the matrices: full, grouped or householder.
        uniform: where random numbers come from.

    Returns:
        Name to tensor: `mixing`, `mixing_inputs`, `mixing_positions` as `turn` takes them;
        `own_weight` and `own_bias` as torch draws a layer's; `map_scale` and `map_shift`
        ``(c, side, side)``.

    Example:
        >>> from .key import seeded_uniform
        >>> uniform = seeded_uniform(torch.Generator().manual_seed(0))
        >>> {n: t.shape for n, t in draw_pieces(Pieces(mixing=12), "grouped", uniform).items()}
        {'mixing': torch.Size([2, 6, 6])}

    """
    drawn = {
        name: _matrix(size, form, uniform)
        for name, size in zip(
            MIXINGS, (pieces.mixing, pieces.inputs, pieces.positions), strict=True
        )
        if size
    }
    if pieces.own:
        bound = 1 / math.sqrt(math.prod(pieces.own[1:]))
        drawn["own_weight"] = bound * (2 * uniform(pieces.own) - 1)
        if pieces.own_bias:
            drawn["own_bias"] = bound * (2 * uniform(pieces.own[:1]) - 1)
    if pieces.map:
        shape = (pieces.channels, pieces.map, pieces.map)
        drawn["map_scale"] = 1 + MAP_SPREAD * (2 * uniform(shape) - 1)
        drawn["map_shift"] = SHIFT_SPREAD * normal(shape, uniform)
    return drawn


def _matrix(size: int, form: str, uniform: Uniform) -> Tensor:
    if form == "grouped":
        block = max(n for n in range(1, BLOCK + 1) if size % n == 0)
        if block > 1:  # a prime number of channels is one block
            return torch.stack([orthogonal(block, uniform) for _ in range(size // block)])
    if form == "householder" and size > REFLECTIONS:
        return normal((REFLECTIONS, size, 1), uniform)
    return orthogonal(size, uniform)


def neutral(name: str, like: Tensor) -> Tensor:
    """What a piece is where there is none: the identity, a weight of zeros, scales of one.

    Example:
        >>> neutral("mixing", torch.rand(2, 2))
        tensor([[1., 0.],
                [0., 1.]])

    """
    if name in MIXINGS:
        if _is_reflections(like):  # the same reflection an even number of times
            return torch.ones_like(like)
        return torch.eye(like.shape[-1]).to(like).expand(like.shape).clone()
    return torch.ones_like(like) if name == "map_scale" else torch.zeros_like(like)


def turn(mixing: Tensor, x: Tensor) -> Tensor:
    """``mixing x`` over the last but one dimension of x.

    Args:
        mixing: ``(c, c)``; blocks ``(c / s, s, s)`` along the diagonal; or ``(k, c, 1)``, the
            product of k Householder reflections ``I - 2 v v^T / v^T v``, the last one first.
        x: ``(..., c, m)``.

    Example:
        >>> turn(torch.ones(2, 2), torch.ones(2, 3))
        tensor([[2., 2., 2.],
                [2., 2., 2.]])

    """
    if mixing.dim() == 2:
        if x.dim() == 2 or mixing.requires_grad:
            return mixing @ x
        # torch would copy a matrix that needs no gradient, as an attacker's fixed one, for each of
        # x's: 10 times as slow
        return F.linear(x.mT.reshape(-1, x.shape[-2]), mixing).view(x.mT.shape).mT
    if _is_reflections(mixing):
        for v in mixing.flip(0):
            x = x - v * (2 / v.square().sum() * (v.mT @ x))
        return x
    blocks = x.view(*x.shape[:-2], *mixing.shape[:2], x.shape[-1])
    return (mixing @ blocks).view(x.shape)


def transposed(mixing: Tensor) -> Tensor:
    """The transpose of a mixing of any form, in the same form.

    Example:
        >>> transposed(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
        tensor([[0., 2.],
                [1., 3.]])

    """
    return mixing.flip(0) if _is_reflections(mixing) else mixing.mT


def _is_reflections(mixing: Tensor) -> bool:
    """Whether it is vectors: blocks are never so small, and no mixing is of one channel."""
    return mixing.dim() == 3 and mixing.shape[-1] == 1


def dense(mixing: Tensor) -> Tensor:
    """A mixing of any form as a matrix ``(c, c)``.

    Example:
        >>> dense(torch.ones(2, 2, 2)).sum(1)
        tensor([2., 2., 2., 2.])

    """
    if mixing.dim() == 2:
        return mixing
    return turn(mixing, torch.eye(size_of(mixing)).to(mixing))


def size_of(mixing: Tensor) -> int:
    """How many channels a mixing of any form mixes.

    Example:
        >>> size_of(torch.ones(3, 2, 2)), size_of(torch.ones(8, 5, 1))
        (6, 5)

    """
    blocks = 1 if mixing.dim() == 2 or _is_reflections(mixing) else len(mixing)
    return blocks * mixing.shape[-2]


def spread(grid: Tensor, height: int, width: int) -> Tensor:
    """Grids ``(c, side, side)`` over maps ``(c, height, width)``, linear in between.

    Example:
        >>> spread(torch.eye(2)[None], 3, 3)[0, 1]
        tensor([0.5000, 0.5000, 0.5000])

    """
    down, across = (_between(grid.shape[-1], size).to(grid) for size in (height, width))
    return down @ grid @ across.mT


def _between(side: int, size: int) -> Tensor:
    """``(size, side)`` how much of each grid point there is at each place of a map."""
    # as a constant, so that an attack differentiates two products and nothing else
    points = torch.eye(side)[None]
    return F.interpolate(points, size=size, mode="linear", align_corners=True)[0].mT
