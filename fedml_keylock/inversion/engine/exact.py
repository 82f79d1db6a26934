"""Replaces functions of torch whose second derivative is missing or wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

__all__ = ["differentiable"]


@contextmanager
def differentiable() -> Iterator[None]:
    """Make the code inside twice differentiable and deterministic.

    - Batch, layer and instance norms apply their weight and bias as a separate step. Under vmap
      torch's second derivative of a norm with a weight is wrong, by up to 1.4 of its own size
      (measured in torch 2.14 against finite differences in float64). Without a weight it is exact;
      group and RMS norms are always exact.
    - Attention uses its MATH kernel, and the fast path of transformer layers is off: other kernels
      have no second derivative. Hardsigmoid has none either, and runs as its elementary operations.
    - A reentrant checkpoint runs without checkpointing: else its layers have a gradient only by
      ``backward``, which autograd would take as zero.
    - Functional dropout is off: see `switch_off`.

    Example:
        >>> x, scale, shift = torch.rand(4, 2, 3), torch.rand(2), torch.rand(2)
        >>> expected = F.batch_norm(x, None, None, scale, shift, training=True)
        >>> with differentiable():
        ...     found = F.batch_norm(x, None, None, scale, shift, training=True)
        >>> torch.allclose(found, expected, atol=1e-6)
        True

    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            sdpa_kernel(SDPBackend.MATH),
            patch.object(torch.utils.checkpoint, "CheckpointFunction", _Whole),
            _Functions(),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Whole:
    """Stands in for ``CheckpointFunction``: runs the function as a whole."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)


class _Functions(TorchFunctionMode):
    """Replaces torch's functions by those of `_EXACT`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        run: Callable[..., Any] = _EXACT.get(func, func)
        return run(*args, **(kwargs or {}))


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    *rest: Any,
    **named: Any,
) -> Tensor:
    if training:  # running statistics do not matter here, and vmap cannot update them
        running_mean = running_var = None
    y = F.batch_norm(x, running_mean, running_var, None, None, training, *rest, **named)
    return _scaled(y, weight, bias, (-1, *[1] * (x.dim() - 2)))


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *rest: Any,
    **named: Any,
) -> Tensor:
    y = F.layer_norm(x, normalized_shape, None, None, *rest, **named)
    return _scaled(y, weight, bias, tuple(normalized_shape))


def _instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    *rest: Any,
    **named: Any,
) -> Tensor:
    if use_input_stats:
        running_mean = running_var = None
    y = F.instance_norm(x, running_mean, running_var, None, None, use_input_stats, *rest, **named)
    return _scaled(y, weight, bias, (-1, *[1] * (x.dim() - 2)))


def _scaled(y: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


def _hardsigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    return F.relu6(x + 3) / 6


def _kept(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x


_EXACT: Mapping[Callable[..., Any], Callable[..., Tensor]] = {
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.instance_norm: _instance_norm,
    F.hardsigmoid: _hardsigmoid,
    **dict.fromkeys(
        (
            F.dropout,
            F.dropout1d,
            F.dropout2d,
            F.dropout3d,
            F.alpha_dropout,
            F.feature_alpha_dropout,
        ),
        _kept,
    ),
}
