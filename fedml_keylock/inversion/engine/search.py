"""Runs the optimisation loop over one batch of candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..optim import BatchedOptimizer
from ..optim.adam import BatchedAdam
from ..optim.lbfgs import BatchedLBFGS
from ..optim.rmsprop import BatchedRMSprop
from .objective import SURROGATE, Objective
from .search_settings import SearchSettings

__all__ = ["Found", "search"]

_POINTS = 50  # of the cost's history
_TOLERANCE = 1e-4  # of L-BFGS: costs are relative, good ones far below 1
_LOOK = 10  # iterations between looks at which candidates have stopped
_KEPT = ("rows", "live", "stopped", "found", "costs", "diverged")  # by a checkpoint


@dataclass(frozen=True)
class Found:
    """The results of b candidates.

    Attributes:
        rows: the last iterates with finite cost and gradient, or the starts, ``(b, d)``.
        costs: their costs ``(b,)``, infinite for a candidate that diverged.
        history: costs at evenly spaced iterations ``(t, b)``.
        diverged: whether each candidate diverged ``(b,)``.

    """

    rows: Tensor
    costs: Tensor
    history: Tensor
    diverged: Tensor


def parts_of(saved: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The saved tensors under a prefix, by the rest of their name."""
    return {n.removeprefix(prefix): t for n, t in saved.items() if n.startswith(prefix)}


def points(evaluations: int) -> tuple[int, int]:
    """Evaluations between two points of the history, and the number of points."""
    every = -(-evaluations // _POINTS)
    return every, -(-evaluations // every)


class _Search:
    """The running search of one batch of candidates."""

    def __init__(self, attack: SearchSettings, objective: Objective, start: Tensor) -> None:
        self.objective = objective
        self.optimizer = _optimizer(attack, objective, start)
        self.rows = start
        self.live = torch.arange(len(start), device=start.device)  # index of each row's candidate
        self.stopped = torch.zeros(len(start), dtype=torch.bool, device=start.device)
        self.found = start.clone()
        self.costs = start.new_full((len(start),), float("inf"))
        self.diverged = torch.zeros_like(self.stopped)
        self.history: list[Tensor] = []
        self.evaluation = 0

    def look(self, enough: float) -> Tensor:
        """Evaluate the rows, record them, and return their gradient."""
        cost, gradient = self.objective(self.rows)
        finite = self._all(cost.isfinite() & gradient.isfinite().all(1))
        lost = self.live[~finite & ~self.stopped]
        self.diverged[lost] = True
        self.costs[lost] = float("inf")
        self.stopped = self.stopped | ~finite
        going = self.live[~self.stopped]
        self.found[going] = self.rows[~self.stopped]
        self.costs[going] = cost[~self.stopped]
        self.stopped = self.stopped | self._all(cost <= enough)
        return gradient

    def _all(self, flags: Tensor) -> Tensor:
        """Stop candidates that share secrets only once all of them may stop."""
        leader = self.objective.leader
        if leader is None:
            return flags
        missing = torch.zeros_like(leader).index_add(0, leader, (~flags).to(leader))
        return missing[leader] == 0

    def drop_stopped(self) -> bool:
        """Drop finished candidates, which would cost time; False if none is left."""
        rest = (~self.stopped).nonzero().flatten()
        if len(rest) == len(self.rows):
            return True
        if not len(rest):
            return False
        self.live, self.rows, self.stopped = self.live[rest], self.rows[rest], self.stopped[rest]
        self.objective = self.objective.select(rest)
        self.optimizer.select(rest)
        return True

    def state(self) -> dict[str, Tensor]:
        """The search's state, by name."""
        return {
            **{name: getattr(self, name) for name in _KEPT},
            "history": torch.stack(self.history),
            "evaluation": torch.tensor(self.evaluation),
            **{f"optimizer.{name}": value for name, value in self.optimizer.state().items()},
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Resume from a state."""
        for name in _KEPT:
            setattr(self, name, state[name].to(getattr(self, name)))
        self.history = list(state["history"].to(self.costs))
        self.evaluation = int(state["evaluation"])
        self.objective = self.objective.select(self.live)
        remembered = parts_of(state, "optimizer.")
        self.optimizer.load({n: value.to(self.rows.device) for n, value in remembered.items()})


def search(
    attack: SearchSettings,
    objective: Objective,
    start: Tensor,
    report: Callable[[int], None],
    *,
    state: Mapping[str, Tensor] | None = None,
    keep: Callable[[Callable[[], dict[str, Tensor]]], None] | None = None,
) -> Found:
    """Run one batch of candidates to the end, or until all have stopped.

    It begins at the starts ``(b, d)``, or resumes from a state. ``keep`` is called at intervals
    with a function that makes such a state. ``report`` is called with the number of evaluations.
    """
    evaluations = attack.steps * attack.inner
    every, count = points(evaluations)
    run = _Search(attack, objective, start)
    if state:
        run.load(state)
    known = objective.knowledge.secrets
    secrets = _columns(objective, start, set(known.names if known else ()))
    alternate = attack.alternate if secrets.any() else 0
    while True:
        gradient = run.look(attack.enough)
        if run.evaluation % every == 0:
            run.history.append(run.costs.clone())
            report(run.evaluation + 1)
        run.evaluation += 1
        if run.evaluation == evaluations:
            break
        if alternate:
            still = secrets ^ bool(run.evaluation // alternate % 2)
            step = run.optimizer.step(run.rows, torch.where(still, 0, gradient))
            run.rows = torch.where(still, run.rows, step)
        else:
            run.rows = run.optimizer.step(run.rows, gradient)
        run.stopped = run.stopped | run.optimizer.stopped
        if run.evaluation % _LOOK == 0:
            if not run.drop_stopped():
                break
            if keep is not None:
                keep(run.state)
    run.history += [run.costs.clone()] * (count - len(run.history))
    report(evaluations)
    return Found(run.found, run.costs, torch.stack(run.history), run.diverged)


def _columns(objective: Objective, like: Tensor, names: set[str]) -> Tensor:
    """Whether each column belongs to one of the names, ``(d,)`` booleans."""
    flags = torch.tensor([name in names for name in objective.layout.shapes])
    return flags.repeat_interleave(torch.tensor(objective.layout.sizes)).to(like.device)


def _optimizer(attack: SearchSettings, objective: Objective, like: Tensor) -> BatchedOptimizer:
    if attack.optimizer == "lbfgs":
        return BatchedLBFGS(learning_rate=attack.learning_rate, tolerance=_TOLERANCE)
    made = attack.parametrisation.rates(objective.knowledge)
    box = {SURROGATE: (0.0, 1.0), **attack.parametrisation.box(objective.knowledge)}
    rate, low, high = (torch.empty_like(like[0]) for _ in range(3))
    first = 0
    for name, size in zip(objective.layout.shapes, objective.layout.sizes, strict=True):
        part = slice(first, first := first + size)
        if name in made:
            rate[part] = attack.learning_rate * made[name]
        elif name == "labels":
            rate[part] = attack.learning_rate
        elif name == SURROGATE:
            rate[part] = attack.surrogate_learning_rate
        else:
            rate[part] = attack.secret_learning_rate
        low[part], high[part] = box.get(name, (-float("inf"), float("inf")))
    if attack.optimizer == "rmsprop":
        return BatchedRMSprop(rate, momentum=attack.momentum)
    return BatchedAdam(
        rate,
        signed=_columns(objective, like, set(made)) & attack.signed,
        low=low,
        high=high,
        milestones=[attack.steps * eighths // 8 for eighths in (3, 5, 7)],
    )
