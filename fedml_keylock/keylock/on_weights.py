"""What a private module does to its layer's weight and bias, in place of to what it computes.

For a convolution or a linear layer it comes to the same, and does not cost more for larger maps.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import LockError
from .formula import mix
from .pieces import PIECES, size_of, spread, transposed, turn

__all__ = ["OnWeights"]


class OnWeights:
    """``diag(gamma) M W N`` and ``diag(gamma) M b + beta``, as far as its holder has these.

    W and b are the layer's own, or private ones in their place; N mixes W's input channels, and in
    a head the positions of each.
    """

    mixing: nn.Parameter | None
    mixing_inputs: nn.Parameter | None
    mixing_positions: nn.Parameter | None
    own_weight: nn.Parameter | None
    own_bias: nn.Parameter | None
    map_scale: nn.Parameter | None
    map_shift: nn.Parameter | None
    channel_dim: int = 1
    on_weights: bool
    """Whether the mixing is here, with gamma and beta if no norm stands between; or behind."""

    def hold(self, pieces: Mapping[str, Tensor]) -> None:
        """Take these as parameters; None for the others."""
        for name in PIECES:
            tensor = pieces.get(name)
            made = None if tensor is None else nn.Parameter(tensor)
            self.register_parameter(name, made)  # type: ignore[attr-defined]  # a module's

    @property
    def pieces(self) -> dict[str, nn.Parameter]:
        """What it has beside gamma and beta, by name."""
        named = {name: getattr(self, name) for name in PIECES}
        return {n: t for n, t in named.items() if isinstance(t, nn.Parameter)}

    @property
    def touches_weights(self) -> bool:
        """Whether its layer computes with another weight than its own."""
        return self.on_weights or not self.outward

    @property
    def outward(self) -> bool:
        """Whether what it does to the weight could be done to the layer's output."""
        return self.own_weight is self.mixing_inputs is self.mixing_positions is None

    def affine(self) -> tuple[Tensor | None, Tensor | None]:
        """Gamma and beta ``(c,)``, where they stand on the weight."""
        return None, None

    def on_weight(self, weight: Tensor) -> Tensor:
        """What the layer computes with in the place of its own weight W ``(out, ...)``."""
        return self._times(self._columns(weight), self.affine()[0])

    def on_bias(self, bias: Tensor | None) -> Tensor | None:
        """What stands in the place of its own bias b ``(out,)``, or of none."""
        return self._moved(self._own(bias), *self.affine())

    def on_both(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """`on_weight` and `on_bias` at once, which takes less time."""
        scale, shift = self.affine()
        rows = self._rows(scale)
        weight = self._columns(weight)
        return self._times(weight, scale, rows), self._moved(self._own(bias), scale, shift, rows)

    def on_output(self, x: Tensor, channel_dim: int) -> Tensor:
        """The same of what the layer computed with its own weight and bias, where it is outward."""
        scale, shift = self.affine()
        rows = self._rows(scale)
        over = (-1,) if channel_dim == -1 else (-1, *[1] * (x.dim() - 2))
        x = mix(x, self.mixing if rows is None else rows, channel_dim=channel_dim)
        if scale is not None and rows is None:
            x = x * scale.view(over)
        return x if shift is None else x + shift.view(over)

    def on_input(self, x: Tensor, channel_dim: int) -> Tensor:
        """What the layer's own weight W gives the same with as W N with x: ``N^T x``."""
        mixing = None if self.mixing_inputs is None else transposed(self.mixing_inputs)
        return mix(x, mixing, channel_dim=channel_dim)

    def is_cheaper_around(self, before: int, behind: int, weight: Tensor) -> bool:
        """Whether `on_input` and `on_output` do the same for less.

        Args:
            before: how many numbers each channel of the layer's input has, those of a whole batch.
            behind: the same of its output.
            weight: the layer's own, which sees all of its input channels.

        """
        if self.own_weight is not None or self.mixing_positions is not None:
            return False
        if self.mixing is not None and not self.on_weights:
            return False  # `behind` has it
        saves = self.mixing_inputs is None or before < weight[:, 0].numel()
        return saves and behind < weight[0].numel()

    def on_result(self, x: Tensor) -> Tensor:
        """What is left to be done to what the layer then computed: nothing."""
        return x

    def behind(self, x: Tensor) -> Tensor:
        """What stands behind gamma and beta on a layer's output: maps, and a mixing."""
        if self.map_scale is not None and self.map_shift is not None:
            if x.dim() != 4:
                raise LockError(
                    f"module: map: a layer's output must be (n, c, h, w), not {x.dim()}-d"
                )
            size = x.shape[-2], x.shape[-1]
            x = x * spread(self.map_scale, *size) + spread(self.map_shift, *size)
        return x if self.on_weights else mix(x, self.mixing, channel_dim=self.channel_dim)

    def _own(self, bias: Tensor | None) -> Tensor | None:
        return bias if self.own_weight is None else self.own_bias

    def _columns(self, weight: Tensor) -> Tensor:
        if self.own_weight is not None:
            weight = self.own_weight
        if self.mixing_inputs is None:
            return weight
        inputs = weight.reshape(len(weight), size_of(self.mixing_inputs), -1)
        mixed = turn(self.mixing_inputs, inputs)
        if self.mixing_positions is not None:
            mixed = turn(self.mixing_positions, mixed.mT).mT
        return mixed.reshape(weight.shape)

    def _rows(self, scale: Tensor | None) -> Tensor | None:
        """Gamma and a full mixing as one matrix: one product for both."""
        if not self.on_weights or self.mixing is None or self.mixing.dim() > 2:
            return None
        return self.mixing if scale is None else scale[:, None] * self.mixing

    def _times(self, weight: Tensor, scale: Tensor | None, rows: Tensor | None = None) -> Tensor:
        if not self.on_weights:
            return weight
        rows = self._rows(scale) if rows is None else rows
        if rows is not None:
            return (rows @ weight.flatten(1)).view(weight.shape)
        flat = weight.flatten(1)
        if self.mixing is not None:
            flat = turn(self.mixing, flat)
        return (flat if scale is None else scale[:, None] * flat).view(weight.shape)

    def _moved(
        self,
        bias: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
        rows: Tensor | None = None,
    ) -> Tensor | None:
        if bias is None or not self.on_weights:
            return bias if shift is None else shift
        rows = self._rows(scale) if rows is None else rows
        if rows is not None:
            return torch.mv(rows, bias) if shift is None else torch.addmv(shift, rows, bias)
        if self.mixing is not None:
            bias = turn(self.mixing, bias[:, None])[:, 0]
        bias = bias if scale is None else scale * bias
        return bias if shift is None else bias + shift
