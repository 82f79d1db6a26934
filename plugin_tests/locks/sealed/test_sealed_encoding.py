"""Fixed point: no sum wraps, what is clipped is counted, and averages are as exact as they say."""

import pytest
import torch
from sealed_silos import one_round, silos_of

from fedml_keylock.locks.sealed.encoding import Counts, Encoding, Shares


def words_of(encoding, payload, place=0):
    """The words of each entry, and what was counted."""
    counts, found = Counts(), {}
    for entry, step in zip(encoding.entries, encoding.steps, strict=True):
        parts = encoding.encode(entry, step, payload[entry.name], place, counts)
        found[entry.name] = [int(word) for part in parts for word in part]
    return found, counts


@pytest.mark.parametrize("size", [5e-324, 1e-300, 1e-30, 1e30, 1.7e308])
def test_float64_of_any_size_is_averaged(size):
    """Guards LEAST: a step of 2^-1057 has no inverse in float64, and the job ended by it."""
    first = {"w": torch.full((2, 2), size, dtype=torch.float64)}
    opened = one_round(silos_of(first), [first, {"w": first["w"] * 0}, {"w": first["w"] * 0.5}])
    assert torch.allclose(opened[0].state["w"], first["w"] / 2, rtol=1e-9, atol=1e-300)
    assert (opened[0].counts.clipped, opened[0].counts.infinite) == (0, 0)


def test_a_difference_beyond_float64_is_counted_as_infinite():
    """Guards ``isfinite(moved)``: of finite numbers, its difference is not, and was sent as 0."""
    first = {"w": torch.tensor([[1.7e308, 1.0], [-torch.inf, torch.nan]], dtype=torch.float64)}
    encoding = Encoding.of(first, Shares((1, 1)))
    words, counts = words_of(encoding, {"w": -first["w"]})
    assert (counts.clipped, counts.infinite, counts.names) == (0, 1, ["w"])
    assert [words["w"][k] for k in (0, 4, 2, 6, 3, 7)] == [0] * 6


def test_shares_are_positive():
    """Guards ``max(1, ...)``: a share of 0 divided by zero where there are integers."""
    assert Shares.of([1e-9, 100.5, 3]).samples == (1, 105381888, 3145728)
    first = {"count": torch.tensor([5, 6])}
    opened = one_round(silos_of(first, (1e-9, 100.5, 3)), [{"count": torch.tensor([7, 6])}] * 3)
    assert opened[0].state["count"].tolist() == [7, 6]
