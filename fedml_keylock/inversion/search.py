"""The optimisation loop over one batch of candidates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .adam import BatchedAdam
from .lbfgs import BatchedLBFGS
from .objective import Layout, Objective

if TYPE_CHECKING:
    from .attack import GradientInversion

__all__ = ["Found", "search"]

_POINTS = 50  # of the cost's history
_TOLERANCE = 1e-4  # of L-BFGS: costs are relative, good ones far below 1
_LOOK = 10  # iterations between looks at which candidates have stopped


@dataclass(frozen=True)
class Found:
    """Where b candidates ended.

    Attributes:
        rows: ``(b, d)`` the last iterate whose cost and gradient are finite (the start, if none).
        costs: ``(b,)`` its cost, infinite for a candidate that diverged.
        history: ``(t, b)`` costs at evenly spaced iterations.
        diverged: ``(b,)`` booleans.

    """

    rows: Tensor
    costs: Tensor
    history: Tensor
    diverged: Tensor


def search(
    attack: GradientInversion,
    objective: Objective,
    start: Tensor,
    bounds: tuple[float, float],
    report: Callable[[int], None],
) -> Found:
    """Run one batch of candidates to the end, or until every one of them has stopped."""
    evaluations = attack.steps * attack.inner
    every = -(-evaluations // _POINTS)
    optimizer = _optimizer(attack, objective.layout, start, bounds)
    found = start.clone()
    costs = start.new_full((len(start),), float("inf"))
    diverged = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    history = []

    rows = start
    live = torch.arange(len(start), device=start.device)  # which candidate each row is
    stopped = torch.zeros_like(diverged)
    for evaluation in range(evaluations):
        cost, gradient = objective(rows)
        finite = cost.isfinite() & gradient.isfinite().all(1)
        lost = live[~finite & ~stopped]
        diverged[lost] = True
        costs[lost] = float("inf")
        stopped = stopped | ~finite
        going = live[~stopped]
        found[going] = rows[~stopped]
        costs[going] = cost[~stopped]
        stopped = stopped | (cost <= attack.enough)
        if evaluation % every == 0:
            history.append(costs.clone())
            report(evaluation + 1)
        if evaluation + 1 == evaluations:
            break

        rows = optimizer.step(rows, gradient)
        stopped = stopped | optimizer.stopped
        if (evaluation + 1) % _LOOK == 0 and stopped.any():
            # a candidate that is done costs as much as any other: go on without it
            rest = (~stopped).nonzero().flatten()
            if not len(rest):
                break
            live, rows, stopped = live[rest], rows[rest], stopped[rest]
            objective = objective.select(rest)
            optimizer.select(rest)
    history += [costs.clone()] * (-(-evaluations // every) - len(history))
    report(evaluations)
    return Found(found, costs, torch.stack(history), diverged)


def _optimizer(
    attack: GradientInversion, layout: Layout, like: Tensor, bounds: tuple[float, float]
) -> BatchedAdam | BatchedLBFGS:
    if attack.optimizer == "lbfgs":
        return BatchedLBFGS(learning_rate=attack.learning_rate, tolerance=_TOLERANCE)
    low, high = bounds
    images = torch.zeros(like.shape[1], dtype=torch.bool, device=like.device)
    images[: layout.sizes[0]] = True
    rate = torch.full_like(like[0], attack.secret_learning_rate)
    rate[images] = attack.learning_rate * (high - low) / 4
    if "labels" in layout.shapes:
        rate[layout.sizes[0] : sum(layout.sizes[:2])] = attack.learning_rate
    infinite = torch.full_like(rate, float("inf"))
    return BatchedAdam(
        rate,
        signed=images & attack.signed,
        low=torch.where(images, low, -infinite),
        high=torch.where(images, high, infinite),
        milestones=[attack.steps * eighths // 8 for eighths in (3, 5, 7)],
    )
