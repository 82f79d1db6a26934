"""Masks that hide one silo's state even from who has the group's secret, and cancel in the average.

Pairwise masks as in secure aggregation (Bonawitz et al., CCS 2017), without its recovery of silos
that drop out: here a silo that drops out ends the job.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...tensors import one_thread
from ..entropy import Stream
from ..job_key import JobKey
from .turns import PARAMETERS, Part, as_one

__all__ = ["masked", "outgrown", "rounding", "scales_of", "width_of"]

LABEL = "mask "
WIDTH, NARROW = 4096.0, 256.0
"""Deviation of a mask of the parameters, over the root mean square of what it hides, at the least;
and of one buffer, such as running variances, of which the smallest must not drown. What is sent is
float32, so that a mask costs a weight some 1e-4 of that mean square; and a silo's step, of norm r
times the norm of all P weights, is hidden like r sqrt(P) / WIDTH in noise of deviation 1."""
LEAST, LEAST_BUFFER = 0.01, 1.0
"""The least scale of parameters, and of a buffer: what is nothing when a round begins need not be
nothing at its end."""
MOST = 16.0
"""How many times its scale a part may be at a round's end, and its mask still hide it."""


@one_thread()
@torch.no_grad()
def masked(
    state: Mapping[str, Tensor],
    parts: Sequence[Part],
    scales: Mapping[str, float],
    key: JobKey,
    round_index: int,
    *,
    undo: bool = False,
) -> dict[str, Tensor]:
    """The entries of the parts, each under this silo's masks. The state is not changed.

    Args:
        state: rotated.
        parts: of the state.
        scales: of each part: see `scales_of`.
        key: of the job; each pair of silos derives a mask, which one adds and the other subtracts.
        round_index: no two rounds have the same masks.
        undo: take the masks away.

    Example:
        >>> part, scales = Part("parameters", ("w",)), {"parameters": 0.1}
        >>> average = torch.zeros(5, dtype=torch.float64)
        >>> for silo, peer in ((1, 2), (2, 1)):
        ...     key = JobKey(b"root", silo, {peer: b"secret"}, {1: 30, 2: 10})
        ...     sent = masked({"w": torch.zeros(5)}, (part,), scales, key, 0)["w"]
        ...     average += key.samples[silo] / 40 * sent.double()
        >>> bool(sent.abs().max() > 10), bool(average.abs().max() < 1e-3)
        (True, True)

    """

    def add(flat: Tensor, part: Part) -> Tensor:
        # FedAvg weighs silos by their samples
        share = max(key.samples.values()) / key.samples[key.silo] * (-1 if undo else 1)
        width = _width(part.label) * share * scales[part.label]
        for peer in sorted(key.pairs):
            sign = 1 if key.silo < peer else -1
            stream = key.stream(LABEL + part.label, round_index, peer=peer)
            flat += sign * width * _noise(len(flat), stream)
        return flat

    changed: dict[str, Tensor] = {}
    for part in parts if key.pairs else ():
        changed |= as_one(part.names, state, partial(add, part=part))
    # the noise's own grid is coarser than float64: what is left between its points would tell
    return {name: tensor.float().to(tensor.dtype) for name, tensor in changed.items()}


def rounding(peers: int, label: str, size: float) -> float:
    """How far masks may take a number of a part of this size by rounding what is sent."""
    # in the average all masks are at most as wide as those of who has the most samples
    widths = _width(label) * math.sqrt(peers)
    return 8 * torch.finfo(torch.float32).eps * widths * max(size, _least(label))


def _width(label: str) -> float:
    return WIDTH if label == PARAMETERS else NARROW


def _least(label: str) -> float:
    return LEAST if label == PARAMETERS else LEAST_BUFFER


def _noise(count: int, stream: Stream) -> Tensor:
    """Standard normal numbers in float64, by the inverse of their distribution function.

    Of 52 bits: coarser ones lie on a grid, and what is left of a sum between its points, which are
    far apart in the tails, would tell what they hide.
    """
    words = np.frombuffer(stream.draw(8 * count), dtype="<u8") >> 12
    # half a step keeps the argument inside (-1, 1), where erfinv is finite
    noise: Tensor = torch.from_numpy((words + 0.5) * 2.0**-51 - 1).erfinv_() * math.sqrt(2)
    return noise


def size_of(tensors: Sequence[Tensor]) -> float:
    """The root mean square of all their numbers."""
    total = sum(float(tensor.detach().double().square().sum()) for tensor in tensors)
    return math.sqrt(total / sum(tensor.numel() for tensor in tensors))


def scales_of(parts: tuple[Part, ...], state: Mapping[str, Tensor]) -> dict[str, float]:
    """The root mean square of each part, which a turn does not change.

    It is that of what a silo has received, so that all silos have the same, and at the least LEAST
    or LEAST_BUFFER: see `outgrown`.
    """
    return {
        part.label: max(size_of([state[name] for name in part.names]), _least(part.label))
        for part in parts
    }


def width_of(part: Part, state: Mapping[str, Tensor], peers: int) -> float:
    """The deviation of the masks on one part, of a silo that has as many samples as any.

    Example:
        >>> width_of(Part("parameters", ("w",)), {"w": torch.ones(3)}, 4)
        8192.0

    """
    return _width(part.label) * scales_of((part,), state)[part.label] * math.sqrt(peers)


def outgrown(sizes: Mapping[str, float], scales: Mapping[str, float]) -> str | None:
    """The first part that has become too large for its mask, or None."""
    return next((label for label, size in sizes.items() if size > MOST * scales[label]), None)
