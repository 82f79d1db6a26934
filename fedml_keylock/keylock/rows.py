"""What acts on a layer's weight and bias, in place of on what the layer computes.

For a convolution or a linear layer it comes to the same, and does not cost more for larger maps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .formula import mix

__all__ = ["Mixing", "OnWeights"]


class OnWeights:
    """``diag(gamma) M W`` and ``diag(gamma) M b + beta``, of whoever has these three."""

    scale: Any
    shift: Any
    mixing: nn.Parameter | None

    def on_weight(self, weight: Tensor) -> Tensor:
        """What the layer computes with in the place of its own weight W ``(out, ...)``."""
        return _times(self._rows(), weight)

    def on_bias(self, bias: Tensor | None) -> Tensor | None:
        """What stands in the place of its own bias b ``(out,)``, or of none."""
        return self._moved(self._rows(), bias)

    def on_both(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """`on_weight` and `on_bias` at once, which takes less time."""
        rows = self._rows()
        return _times(rows, weight), self._moved(rows, bias)

    def _moved(self, rows: Tensor, bias: Tensor | None) -> Tensor | None:
        shift = self._shift()
        if bias is None or shift is None:
            return shift if bias is None else torch.mv(rows, bias)
        return torch.addmv(shift, rows, bias)

    def on_output(self, x: Tensor, channel_dim: int) -> Tensor:
        """The same of what the layer computed with its own weight and bias."""
        mixed = mix(x, self._rows(), channel_dim=channel_dim)
        shift = self._shift()
        if shift is None:
            return mixed
        return mixed + (shift if channel_dim == -1 else shift.view(-1, *[1] * (x.dim() - 2)))

    def _rows(self) -> Tensor:
        assert self.mixing is not None
        rows: Tensor = self.scale()[:, None] * self.mixing
        return rows

    def _shift(self) -> Tensor | None:
        shift: Tensor = self.shift()
        return shift


class Mixing(OnWeights):
    """``M W`` and ``M b``: in front of a normalisation, which has gamma and beta."""

    mixing: nn.Parameter

    def _rows(self) -> Tensor:
        return self.mixing

    def _shift(self) -> None:
        return None


def _times(rows: Tensor, weight: Tensor) -> Tensor:
    return (rows @ weight.flatten(1)).view(weight.shape)
