"""What is timed is what is meant, and runs: benchmarks themselves are not among the fast tests."""

import pytest
from steps import round_of, step_of


def test_a_round_and_a_step_can_be_run_again_and_again():
    for once in (round_of("LeNet", 3), step_of("LeNet", "rotated")):
        once()
        once()


def test_a_round_is_of_a_masked_update(monkeypatch):
    """Without one, the time would be of half the work."""
    from fedml_keylock.locks.rotated import lock

    def masked(*_args, **_settings):
        raise RuntimeError("it was to be masked")

    monkeypatch.setattr(lock, "masked", masked)
    with pytest.raises(RuntimeError, match="it was to be masked"):
        round_of("LeNet", 3)()
