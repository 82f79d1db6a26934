"""Detects layers that a malicious server manipulated to read data, by their weights alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..tensors import under

__all__ = ["ModelGuard", "armed_layers"]

_ROWS = 16
"""Fewest rows of a layer that is checked."""
_WIDTH = 16
"""Fewest weights of a row: shorter honest rows are alike by chance."""
_LOOKED_AT = 128
"""Most rows of a layer that are checked, evenly spaced."""
_PROBES = 8
"""Number of rows that are compared with all others."""
_PARALLEL = 0.999
"""Cosine of two rows from which they measure the same."""
_HALF = 0.25
"""Largest distance from one half of a trap row's share of negative weights."""
_NARROW = 0.3
"""Spread of rows' sums, relative to independent weights', below which rows were balanced."""


def armed_layers(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Layers whose weights no initialisation or training gives, and what is odd about each.

    - Imprint-like: many rows measure the same, under different biases.
    - Trap-like: in each row the negative weights outweigh the positive ones, by the same part.
    - Dead: all weights are 0.

    These are statistical tests: a server that knows them can evade them.

    Args:
        state: a model's state, name to tensor.

    Returns:
        Layer name to what is odd about it; empty if nothing is.

    Example:
        >>> row = torch.rand(64)
        >>> armed_layers({"fc.weight": row.repeat(20, 1), "fc.bias": torch.linspace(0, 1, 20)})
        {'fc': '100% of its rows measure the same, under different biases (imprint)'}

    """
    found = {}
    for name, weight in state.items():
        layer, _, part = name.rpartition(".")
        if part != "weight" or weight.ndim < 2 or not weight.is_floating_point():
            continue
        if weight.layout != torch.strided or len(weight) < _ROWS or not weight.numel():
            continue
        if not bool(weight.any()):
            found[layer] = "all weights are 0 (dead)"
            continue
        chosen = torch.linspace(0, len(weight) - 1, min(len(weight), _LOOKED_AT)).long()
        bias = state.get(under(layer, "bias"))
        if bias is not None and bias.shape != weight.shape[:1]:
            bias = None  # a transposed convolution's rows are its inputs
        odd = _odd(
            weight.detach()[chosen].flatten(1).float(),
            None if bias is None else bias.detach()[chosen].float(),
        )
        if odd:
            found[layer] = odd
    return found


@dataclass
class ModelGuard:
    """Warns in a silo of armed layers in the models that it receives, once for each layer."""

    _known: dict[str, str] | None = field(default=None, repr=False)

    def look(
        self, sent: Mapping[str, Tensor], own: Mapping[str, Tensor], *, who: str
    ) -> dict[str, str]:
        """Check a model that the silo received, before it trains it.

        Args:
            sent: the received state.
            own: state of the model that the silo built itself. Its own oddities are no reason for a
                warning. Used in the first call only.
            who: name of the silo in the log.

        Returns:
            The layers warned of, as from `armed_layers`.

        """
        if self._known is None:
            self._known = armed_layers(own)
        found = {n: w for n, w in armed_layers(sent).items() if self._known.get(n) != w}
        self._known |= found
        if found:
            logging.warning(
                "%s: the server's model looks as if it were MADE TO READ THIS SILO'S DATA: %s; "
                "whoever knows these tests can evade them: agree with the other silos on the "
                "first model and pin it (keylock.first_model, of lock: sealed)",
                who,
                "; ".join(f"{name or 'the model'}: {what}" for name, what in found.items()),
            )
        return found


def _odd(rows: Tensor, bias: Tensor | None) -> str:
    """What is odd about a layer's rows ``(r, n)`` and their biases; empty if nothing is."""
    sizes = rows.norm(dim=1)
    # rows of zeros are no evidence on the others
    some = sizes > 0
    rows, sizes = rows[some], sizes[some]
    rows = rows[:, rows.any(0)]
    if len(rows) < _ROWS or rows.shape[1] < _WIDTH:
        return ""
    if bias is not None:
        chosen = torch.linspace(0, len(rows) - 1, _PROBES).long()
        cosines = (rows @ rows[chosen].T) / sizes[:, None] / sizes[chosen]
        same = (cosines.abs() > _PARALLEL).sum(0)
        alike = cosines[:, same.argmax()].abs() > _PARALLEL
        of_them = bias[some][alike] / sizes[alike]
        if int(alike.sum()) >= _ROWS and float(of_them.std()) > 0:
            share = float(alike.float().mean())
            return f"{share:.0%} of its rows measure the same, under different biases (imprint)"
    # the sum of a row's n independent weights is about as large as its norm
    sums, negative = rows.sum(1) / sizes, (rows < 0).float().mean(1)
    halves = float((negative - 0.5).abs().max()) < _HALF
    if halves and float(sums.mean()) < 0 and float(sums.std()) < _NARROW:
        return "in every row the negative weights outweigh the others alike (trap)"
    return ""
