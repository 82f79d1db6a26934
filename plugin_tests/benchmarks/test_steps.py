"""What is timed is what is meant, and runs: benchmarks themselves are not among the fast tests."""

import pytest
import torch
from steps import LOCKS, make, round_of, step_of

from fedml_keylock import is_locked


@pytest.mark.parametrize("lock", LOCKS)
def test_a_step_can_be_run_again_and_again(lock):
    assert is_locked(make("LeNet", lock)) == (lock != "none")
    once = step_of("LeNet", lock)
    once()
    once()


def test_a_round_is_of_a_rotated_state_that_comes_back(tmp_path, monkeypatch):
    """Without a rotation the time would be of no work."""
    from fedml_keylock.locks.rotated.rotation import Rotation

    sent, rotate = [], Rotation.rotate

    def watched(self, state):
        sent.append((state, rotate(self, state)))
        return sent[-1][1]

    monkeypatch.setattr(Rotation, "rotate", watched)
    once = round_of("LeNet", tmp_path)
    once()
    once()
    assert len(sent) == 2
    for state, rotated in sent:
        assert not torch.allclose(rotated["0.weight"], state["0.weight"], atol=1e-3)
    first, last = sent[0][0]["0.weight"], sent[1][0]["0.weight"]
    assert torch.allclose(first, last, atol=1e-5)
