"""A silo's part round by round: what it may send, in which order, and on which grid."""

import pytest
import torch
from sealed_silos import one_round, silos_of

from fedml_keylock.errors import UpdateRefused
from fedml_keylock.locks.sealed.encoding import Shares


@pytest.mark.parametrize("odd", [0, -199, float("nan"), float("inf"), 2.0**40])
def test_samples_that_are_no_weight_are_refused(odd):
    """Guards `Shares.of`: with 100, 100 and -199 the bounds sum to 2^38, and sums wrap."""
    with pytest.raises(UpdateRefused, match="the silos say that they have 100, 100, "):
        Shares.of([100, 100, odd])


@pytest.mark.parametrize(
    "payload",
    [torch.full((2, 2), 900.0), torch.full((2, 3), 900.0), torch.full((2, 2), 900.0).double()],
    ids=["another name", "another shape", "another type"],
)
def test_what_the_server_did_not_send_is_of_the_declared_scale(payload):
    """Guards `Rounds._base_of` and `Rounds._scales`.

    The scale of what came in another shape or type was not used, and large numbers clipped at 16.
    """
    first = {"w": torch.ones(2, 2)}
    name = "gradient" if payload.shape == (2, 2) and payload.dtype == torch.float32 else "w"
    with pytest.raises(UpdateRefused, match=rf"{name}: .* declare it by keylock: {{scale: LARGEST"):
        one_round(silos_of(first), [{name: payload}] * 3)
    for opened in one_round(silos_of(first, scale=1000.0), [{name: payload}] * 3):
        assert opened.counts.clipped == 0
        assert torch.allclose(opened.state[name], payload, rtol=1e-4)
