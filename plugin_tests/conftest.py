"""Tests run two at a time and more: how they are shared out.

A file's tests stay together, as they share what is made once; real jobs are shared out one by one,
but for those that several tests look at. Every Python that they start hurries, but for benchmarks'.
"""

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is there; others use the cores too

HURRIED = str(Path(__file__).parent / "hurried")
SHARED = (
    "test_agreement_over_mpi",
    "test_multi_host",
    "test_rotated_jobs",
    "test_sealed_jobs",
    "test_ways",
    "test_wire",
)
"""Files of which several tests look at one real job."""
LARGE = "vgg16"
"""In the name of jobs that take so much memory that no two are to run at once."""


def pytest_configure(config):
    if not config.getoption("benchmark_only", False):
        before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if HURRIED not in before:
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [HURRIED, *before]))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    # what a test draws without a seed of its own is the same in every run
    import torch

    torch.manual_seed(0)


def together(nodeid: str) -> str:
    """What a test has in common with those that are to run in the same process."""
    path = Path(nodeid.partition("::")[0])
    if path.parent.name != "jobs" or path.stem in SHARED:
        return str(path)
    return LARGE if LARGE in nodeid else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    # not --dist loadgroup: pytest 9 no longer lets it rename tests, and it groups nothing
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return together(nodeid)

    return Together(config, log) if config.getvalue("dist") == "load" else None
