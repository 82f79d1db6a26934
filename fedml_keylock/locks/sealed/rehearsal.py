"""Runs one sealed round of all silos in one process, as in FedML's simulation."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence

from torch import Tensor

from ...errors import UpdateRefused
from ...tensors import with_versions
from ...types import JobSecrets
from .canary_release import CanaryWatch, released
from .job_noise import JobNoise
from .rounds import Rounds
from .sealing import Opened, add_up

__all__ = ["check_counts", "rehearse"]


def rehearse(
    base: Mapping[str, Tensor],
    updates: Sequence[tuple[float, Mapping[str, Tensor]]],
    colluders: int | None,
    scale: float | None,
    noise: JobNoise | None = None,
    canaries: CanaryWatch | None = None,
) -> tuple[list[Mapping[str, Tensor]], Mapping[str, Tensor]]:
    """The messages of one round, sealed with secrets of its own, and their average.

    Args:
        base: the payload that the silos received.
        updates: the samples and the payload of each silo.
        colluders: as declared.
        scale: the largest number in tensors that no silo has received.
        noise: of the job, if any.
        canaries: of the job, which the first silo adds.

    """
    count = len(updates)
    pairs = {(i, j): os.urandom(32) for j in range(count) for i in range(j)}
    group = os.urandom(32)
    weighs = noise is None or noise.weighs
    samples = {i: number if weighs else 1.0 for i, (number, _) in enumerate(updates)}
    silos = []
    for own in range(count):
        mine = {i: pairs[min(i, own), max(i, own)] for i in range(count) if i != own}
        silos.append(Rounds(JobSecrets(group, own, mine, samples), colluders, scale))
        silos[own].begin(base)
    if noise is not None:
        noise.silos = count
    messages = []
    for own, (number, payload) in enumerate(updates):
        release = None
        if noise is not None:
            payload = noise.outgoing(payload, base, number)
            release = released(noise, payload, canaries, own)
        messages.append(silos[own].seal(payload, samples=samples[own], release=release)[0])
    opened = silos[0].open(add_up(messages))
    check_counts(opened, 0)
    if canaries is not None:
        canaries.see(opened.state, silos[0].record)
    if noise is not None:
        noise.follow(opened)
    if opened.counts.clipped:
        logging.warning(
            "%d numbers of the silos' updates were clipped to the range of a round",
            opened.counts.clipped,
        )
    return [*messages], with_versions(opened.state, base)


def check_counts(opened: Opened, round_index: int) -> None:
    """Check that no silo sent numbers that are NaN or infinite.

    Raises:
        UpdateRefused: naming the round, but no silo or tensor.

    """
    if opened.counts.infinite:
        raise UpdateRefused(
            f"round {round_index}: numbers of the silos' updates were NaN or infinite: training "
            "has diverged. The own log of the silo that sent them names the tensors; lower the "
            "learning rate, or clip gradients"
        )
