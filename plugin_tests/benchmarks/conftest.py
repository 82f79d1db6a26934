"""Ratios within one run: each measured step stands next to the one that it is compared with."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable

import pytest

ROWS = pytest.StashKey[list[tuple[str, str]]]()


class Report:
    """Collects one line a measurement, printed at the end of the run."""

    def __init__(self, rows: list[tuple[str, str]]) -> None:
        self._rows = rows

    def __call__(self, what: str, found: str) -> None:
        self._rows.append((what, found))


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    return Report(request.config.stash.setdefault(ROWS, []))


@pytest.fixture
def scripts() -> dict[str, str]:
    """The environment of a script beside this that imports what tests import."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def paired(benchmark) -> Callable[..., float]:
    """Median over rounds of (a step's time over its neighbour's), a neighbour before each step."""

    def run(step: Callable[[], None], neighbour: Callable[[], None], *, rounds: int) -> float:
        for _ in range(3):
            neighbour()
            step()
        before = []

        def time_the_neighbour() -> None:
            began = time.perf_counter()
            neighbour()
            before.append(time.perf_counter() - began)

        benchmark.pedantic(step, setup=time_the_neighbour, rounds=rounds)
        pairs = zip(benchmark.stats.stats.data, before, strict=True)
        ratio = statistics.median(one / other for one, other in pairs)
        benchmark.extra_info["ratio"] = ratio
        return ratio

    return run


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    rows = config.stash.get(ROWS, [])
    if rows:
        terminalreporter.section("what it costs")
        width = max(len(what) for what, _ in rows)
        for what, found in rows:
            terminalreporter.write_line(f"{what:{width}}  {found}")
