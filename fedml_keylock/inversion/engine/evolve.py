"""Searches by evolution without gradients: CMA-ES for each candidate, in one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import MissingExtra
from .objective import Objective
from .search import Found, points
from .search_settings import SearchSettings

__all__ = ["evolve"]


def evolve(
    attack: SearchSettings,
    objective: Objective,
    start: Tensor,
    report: Callable[[int], None],
    *,
    seeds: Tensor,
) -> Found:
    """Search each candidate by CMA-ES (Hansen and Ostermeier 2001; the ``cma`` package).

    A candidate's cost is the best of its evolution. An evolution that reached the package's own
    tolerances is not continued.

    The attack's ``steps`` are generations, its ``population`` is per candidate, and its
    ``learning_rate`` is the first deviation, in the unit of each unknown's rate. The starts
    ``(b, d)`` are the first means, and the ``(b,)`` positive integers seed the evolutions.

    Raises:
        MissingExtra: the package is not installed.

    """
    try:
        import cma
    except ImportError:
        raise MissingExtra("cma", "ggl") from None
    every, count = points(attack.steps)
    settings: dict[str, Any] = {"verbose": -9, "maxiter": attack.steps}
    if attack.population:
        settings["popsize"] = attack.population
    runs = [
        cma.CMAEvolutionStrategy(row, attack.learning_rate, {**settings, "seed": seed})
        for row, seed in zip(start.cpu().double().numpy(), seeds.tolist(), strict=True)
    ]
    found, costs = start.clone(), start.new_full((len(start),), float("inf"))
    best = costs.clone()
    history = []
    for generation in range(attack.steps):
        live = [index for index, run in enumerate(runs) if not run.stop()]
        if not live:
            break
        asked = [np.stack(runs[index].ask()) for index in live]
        sizes = [len(rows) for rows in asked]
        which = torch.tensor(live, device=start.device)
        owner = which.repeat_interleave(torch.tensor(sizes, device=start.device))
        rows = torch.from_numpy(np.concatenate(asked)).to(start)
        cost, value = objective.select(owner).value(rows)
        # the package treats NaN as worst
        value = torch.where(cost.isfinite() & value.isfinite(), value, float("nan"))
        first = 0
        for index, size, population in zip(live, sizes, asked, strict=True):
            part = slice(first, first := first + size)
            values = value[part]
            runs[index].tell(list(population), values.double().cpu().tolist())
            low = int(torch.where(values.isnan(), float("inf"), values).argmin())
            if values[low] < best[index]:
                best[index], costs[index] = values[low], cost[part][low]
                found[index] = rows[part][low]
        if generation % every == 0:
            history.append(costs.clone())
            report(generation + 1)
        if bool((costs <= attack.enough).all()):
            break
    history += [costs.clone()] * (count - len(history))
    report(attack.steps)
    return Found(found, costs, torch.stack(history), ~costs.isfinite())
