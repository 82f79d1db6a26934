"""What is timed runs again and again: benchmarks themselves are not among the fast tests."""

import pytest
from steps import LOCKS, step_of


@pytest.mark.parametrize("lock", LOCKS)
def test_a_step_can_be_run_again_and_again(lock):
    once = step_of("LeNet", lock)
    once()
    once()
