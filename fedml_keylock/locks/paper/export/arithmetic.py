"""Computes channel maps, and folds them into a layer or makes them plain modules."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layers import public_parameter

__all__ = [
    "ChannelMap",
    "batch_map",
    "fold_into",
    "put_behind",
    "set_affine",
    "shift_by",
]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class ChannelMap:
    """``y = weight x + bias`` along the channels, in float64 on the CPU.

    Attributes:
        weight: ``(c,)``, one factor a channel.
        bias: ``(c,)``, or None for a map without a shift.

    """

    weight: Tensor
    bias: Tensor | None


def batch_map(
    mean: Tensor, variance: Tensor, eps: float, gamma: Tensor, beta: Tensor
) -> ChannelMap:
    """The map of a batch norm with these running statistics in evaluation. All are ``(c,)``.

    Example:
        >>> batch_map(torch.ones(1), torch.ones(1), 0.0, torch.ones(1), torch.ones(1)).bias
        tensor([0.])

    """
    scale = gamma / torch.sqrt(variance + eps)
    return ChannelMap(scale, beta - mean * scale)


def fold_into(layer: nn.Module, change: ChannelMap) -> None:
    """Make a convolution or linear layer compute ``change(layer(x))``.

    The layer gets a bias if it had none and the map has a shift.

    Args:
        layer: changed in place.
        change: a map of the channels of its output.

    Example:
        >>> layer = nn.Linear(3, 2, bias=False)
        >>> fold_into(layer, ChannelMap(torch.zeros(2), torch.ones(2)))
        >>> layer(torch.rand(1, 3))
        tensor([[1., 1.]], grad_fn=<AddmmBackward0>)

    """
    old = public_parameter(layer, "weight")
    assert old is not None
    weight = old.detach().cpu().double()
    groups = getattr(layer, "groups", 1)
    transposed = isinstance(layer, TRANSPOSED)
    if transposed:
        weight = _transposed(weight, groups)
    weight = change.weight.double().view(-1, *[1] * (weight.dim() - 1)) * weight
    if transposed:
        weight = _transposed(weight, groups)
    own = public_parameter(layer, "bias")
    bias = change.bias
    if own is not None:
        moved = own.detach().cpu().double()
        moved = change.weight.double() * moved
        bias = moved if bias is None else bias + moved
    layer.weight = _like(weight, old)
    if bias is not None:
        layer.bias = _like(bias, old if own is None else own)


def set_affine(norm: nn.Module, gamma: Tensor, beta: Tensor | None, like: Tensor) -> None:
    """Give a normalisation layer this weight and bias as its own parameters.

    Args:
        norm: changed in place.
        gamma: ``(c,)``.
        beta: ``(c,)``, or None for a layer that has no bias.
        like: a tensor with the device and type for a layer that has no parameters.

    Example:
        >>> norm = nn.BatchNorm2d(2, affine=False)
        >>> set_affine(norm, torch.ones(2), torch.zeros(2), torch.empty(0))
        >>> norm.affine, norm.weight.shape
        (True, torch.Size([2]))

    """
    for name, value in (("weight", gamma), ("bias", beta)):
        if value is not None:
            old = public_parameter(norm, name)
            setattr(norm, name, _like(value, like if old is None else old, trained=old is None))
    for flag in ("affine", "elementwise_affine"):
        if hasattr(norm, flag):
            setattr(norm, flag, True)


def shift_by(beta: Tensor, like: Tensor) -> nn.Linear:
    """A plain layer that adds beta ``(c,)`` to the last dimension.

    Example:
        >>> shift_by(torch.ones(2), torch.empty(0))(torch.zeros(1, 2)).tolist()
        [[1.0, 1.0]]

    """
    # on meta: initial values are not needed, and would use up random numbers
    made = nn.Linear(len(beta), len(beta), device="meta")
    made.weight = _like(torch.ones_like(beta).diag(), like, trained=True)
    made.bias = _like(beta, like, trained=True)
    return made


def put_behind(layer: nn.Module, *behind: nn.Module) -> None:
    """Turn a layer into a `nn.Sequential` of itself and the modules behind it.

    The object stays the same, so that every reference to it runs the whole sequence. Its forward
    hooks get the output of the whole.

    Example:
        >>> layer = nn.ReLU()
        >>> put_behind(layer, nn.Sigmoid())
        >>> layer(torch.tensor(-1.0))
        tensor(0.5000)

    """
    inner = object.__new__(type(layer))
    inner.__dict__.update(vars(layer))
    sequence = nn.Sequential(inner, *behind).train(layer.training)
    for table in ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"):
        setattr(sequence, table, vars(inner)[table])
        setattr(inner, table, OrderedDict())
    layer.__class__ = nn.Sequential
    layer.__dict__ = sequence.__dict__


def _transposed(weight: Tensor, groups: int) -> Tensor:
    """Swap a transposed convolution's weight between its own layout and a convolution's.

    ``(in, out / groups, ...)`` becomes ``(out, in / groups, ...)``, and back again.
    """
    each = weight.view(groups, -1, *weight.shape[1:])
    return each.transpose(1, 2).flatten(0, 1)


def _like(value: Tensor, old: Tensor, *, trained: bool = False) -> nn.Parameter:
    """A parameter with these values, and the old one's device, type and memory format."""
    if old.shape == value.shape:
        made = torch.empty_like(old, requires_grad=False)
    else:
        made = torch.empty(value.shape, dtype=old.dtype, device=old.device)
    with torch.no_grad():
        made.copy_(value)
    return nn.Parameter(made, requires_grad=trained or old.requires_grad)
