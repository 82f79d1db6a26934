"""A silo's part round by round: what it may send, in which order, and on which grid."""

import re

import pytest
import torch
from sealed_silos import one_round, silos_of

from fedml_keylock.errors import UpdateRefused
from fedml_keylock.locks.sealed.encoding import Shares


@pytest.mark.parametrize("odd", [0, -199, float("nan"), float("inf")])
def test_samples_that_are_no_weight_are_refused(odd):
    """Guards `Shares.of`: with 100, 100 and -199 the bounds sum to 2^38, and sums wrap."""
    with pytest.raises(UpdateRefused, match=re.escape(f"it has {odd:g} samples")) as said:
        Shares.of([117, 118, odd])
    assert "117" not in str(said.value)


@pytest.mark.parametrize(
    "numbers",
    [[133.25, 133], [0.2, 0.3, 0.5], [3e-7, 1e-7], [2.0**41, 3 * 2.0**40], [1e300, 1e299]],
)
def test_fractions_and_large_numbers_weigh_as_in_fedmls_average(numbers):
    """Guards the scale in `Shares.of`: at 2^20, three parts in ten million weighed as one."""
    shares = Shares.of(numbers)
    for own, number in zip(shares.samples, numbers, strict=True):
        assert own / shares.total == pytest.approx(number / sum(numbers), abs=2**-24)


DECLARE = r"declare it by keylock: {scale: LARGEST"


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (torch.full((2, 2), 900.0), rf"the server has not sent, .* {DECLARE}"),
        (
            torch.full((2, 3), 900.0),
            r"is \(2, 3\), and .* sent it as \(2, 2\): send it in that shape",
        ),
        (
            torch.full((2, 2), 900.0).double(),
            rf"is torch.float64 and was .* torch.float32, .* {DECLARE}",
        ),
    ],
    ids=["another name", "another shape", "another type"],
)
def test_what_the_server_did_not_send_is_of_the_declared_scale(payload, said):
    """Guards `Rounds._base_of` and `Rounds._scales`.

    The scale of what came in another shape or type was not used, and large numbers clipped at 16.
    """
    first = {"w": torch.ones(2, 2)}
    name = "gradient" if payload.shape == (2, 2) and payload.dtype == torch.float32 else "w"
    with pytest.raises(UpdateRefused, match=f"^{name}: {said}"):
        one_round(silos_of(first), [{name: payload}] * 3)
    for opened in one_round(silos_of(first, scale=1000.0), [{name: payload}] * 3):
        assert opened.counts.clipped == 0
        assert torch.allclose(opened.state[name], payload, rtol=1e-4)


def test_updates_that_nearly_cancelled_in_a_round_are_sent_whole_in_the_next():
    """As gradients do. Guards `Rounds._grown`: the range was that of their average."""
    ones = torch.ones(2, 3)
    silos = silos_of({"w": ones / 4}, (1, 1))
    for one, other in ((1.0, -0.9999), (1.0, -0.9998), (1.0, 1.0), (0.0, 0.0), (-1.0, -1.0)):
        opened = one_round(silos, [{"w": one * ones}, {"w": other * ones}])[0]
        assert opened.counts.clipped == 0
        assert torch.allclose(opened.state["w"], (one + other) / 2 * ones, rtol=0, atol=1e-7)


def test_a_declared_scale_holds_for_the_rounds_that_follow():
    """As of control variates, which cancel. Guards `Rounds._grown`."""
    ones = torch.ones(2, 3)
    silos = silos_of({"w": ones}, (1, 1), scale=1.0)
    for one in (1e-4, 1.0):
        opened = one_round(silos, [{"c": one * ones}, {"c": one * ones}])[0]
        assert opened.counts.clipped == 0
        assert torch.allclose(opened.state["c"], one * ones, atol=1e-8)


def test_a_part_may_be_sent_that_was_not_in_the_last_round():
    """As where body and head are trained in turn. Guards ``**self.base`` in `Rounds.open`."""
    silos = silos_of({"body": torch.ones(2, 3), "head": torch.ones(2)})
    for number, name in enumerate(("body", "head", "body", "head")):
        moved = 1.0 + number // 2 + torch.rand(2, 3 if name == "body" else 1).squeeze(1)
        opened = one_round(silos, [{name: moved}] * 3)[0]
        assert torch.allclose(opened.state[name], moved, atol=1e-6)
    assert all(silo.base.keys() == {"body", "head"} for silo in silos)


def test_an_average_has_the_order_of_what_was_sent():
    """As FedML's has; jobs load by place, too. Guards the order in `open_sum`."""
    names = [f"{layer}.weight" for layer in (0, 10, 2, 1)]
    silos = silos_of({name: torch.ones(2, 2) for name in sorted(names)})
    for _ in range(2):
        opened = one_round(silos, [dict.fromkeys(names, torch.ones(2, 2))] * 3)[0]
        assert list(opened.state) == names


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.int64])
def test_votes_and_masks_are_to_be_sent_as_floating_point(dtype):
    """FedML's average of integers has fractions. Guards `Rounds._base_of`."""
    silos = silos_of({"w": torch.ones(2, 2)}, scale=1.0)
    for name in ("w", "mask"):
        with pytest.raises(UpdateRefused, match=rf"{name} is {dtype}, which .* as floating point"):
            silos[0].seal({name: torch.ones(2, 2, dtype=dtype)})
