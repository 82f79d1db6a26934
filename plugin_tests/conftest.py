"""Tests run two at a time and more: how they are shared out.

A file's tests stay together, as they share what is made once; real jobs are shared out one by one,
but for those that several tests look at.
"""

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is there; others use the cores too


SHARED = {"plain", "locked", "agreed", "ran"}
"""Fixtures that are real jobs, of which several tests of a file look at different sides."""


def pytest_collection_modifyitems(items):
    for item in items:
        one_by_one = item.path.parent.name == "jobs" and SHARED.isdisjoint(item.fixturenames)
        if not one_by_one:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
