"""Numbers that are infinite when they come, and complex ones: averaged as FedML averages them."""

import math

import pytest
import torch
from sealed_silos import one_round, silos_of

from fedml_keylock.errors import UpdateRefused
from fedml_keylock.locks.sealed.entries import entries_of
from fedml_keylock.locks.sealed.seal_transform import SealTransform, noise_like
from fedml_keylock.types import ClientUpdate

SAMPLES = (3, 2, 1)
EDGE = -math.inf, math.inf, math.nan


def average(states, samples=SAMPLES):
    """FedML's."""
    parts = [(n / sum(samples)) * state["w"] for n, state in zip(samples, states, strict=True)]
    return sum(parts[1:], parts[0])


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
@pytest.mark.parametrize("odd", EDGE)
def test_what_came_infinite_begins_where_silos_have_numbers(odd, shape):
    """As an observer of quantization has before its first batch. Guards `Encoding._begun`.

    A matrix may begin with 2^4 times a quarter of the least share.
    """
    first = {"w": torch.full(shape, odd)}
    silos = silos_of(first, SAMPLES)
    for scale in (0.2, -0.25, 3.0):
        states = [{"w": torch.full(shape, scale * (k + 1))} for k in range(3)]
        opened = one_round(silos, states)[0]
        assert torch.allclose(opened.state["w"], average(states), rtol=1e-6)
        assert (opened.counts.clipped, opened.counts.infinite) == (0, 0)


def test_finite_numbers_whose_sum_is_infinite_are_averaged():
    """By their sum it is looked whether all that came is finite."""
    first = {"w": torch.full((2, 2), 2e38)}
    states = [{"w": first["w"] * (1 - 0.1 * k)} for k in range(3)]
    opened = one_round(silos_of(first, SAMPLES), states)[0]
    assert torch.allclose(opened.state["w"], average(states), rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (2, 2)])
def test_zeros_of_all_silos_are_zeros(shape):
    """Behind a ReLU an observer's least number is 0 in all of them."""
    silos = silos_of({"w": torch.full(shape, math.inf)}, SAMPLES)
    opened = one_round(silos, [{"w": torch.zeros(shape)}] * 3)[0]
    assert torch.equal(opened.state["w"], torch.zeros(shape))


@pytest.mark.parametrize("shape", [(), (2, 2)])
@pytest.mark.parametrize("keeps", [0, 1, 2])
@pytest.mark.parametrize("odd", EDGE)
def test_what_one_silo_keeps_is_kept(odd, keeps, shape):
    """FedML's average is not finite either. Guards the bound of what begins, and its threshold."""
    first = {"w": torch.full(shape, odd)}
    for size in (0.0, 1e30, -1e30):
        states = [{"w": torch.full(shape, size)}] * 3
        states[keeps] = first
        opened = one_round(silos_of(first, SAMPLES), states)[0]
        assert torch.equal(opened.state["w"].isnan(), first["w"].isnan())
        assert not torch.isfinite(opened.state["w"]).any()
        assert opened.counts.infinite == 0


def test_where_one_silo_has_next_to_no_share_nothing_begins():
    """Guards ``begun == 0``: the bound of that silo is 0, and does not say what it has kept."""
    first, other = {"w": torch.tensor([[-math.inf, 1.0]])}, {"w": torch.tensor([[2.0, 1.0]])}
    for states in ([first, first], [other, first]):
        opened = one_round(silos_of(first, (2**39, 1)), states)[0]
        assert torch.equal(opened.state["w"], first["w"])


def test_another_infinity_than_what_came_is_counted():
    first = {"w": torch.tensor([-math.inf, math.inf, math.nan])}
    states = [{"w": torch.tensor([math.inf, math.nan, math.inf])}, first, first]
    assert one_round(silos_of(first, SAMPLES), states)[0].counts.infinite == 3


# complex numbers


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", [(), (3,), (2, 2), (0,), (2, 1, 3)])
def test_complex_numbers_are_averaged(dtype, shape):
    """As Fourier layers have them. Guards `tensors.real` and ``Entry.complex``."""
    made = [{"w": torch.randn(shape, dtype=dtype)} for _ in range(4)]
    size = max((float(state["w"].abs().max()) for state in made if state["w"].numel()), default=0.0)
    silos = silos_of(made[0], SAMPLES)
    for states in (made[1:], made[:3]):
        opened = one_round(silos, states)[0].state["w"]
        assert opened.dtype == dtype
        # of the largest: FedML's own average is in float32, where numbers nearly cancel
        assert torch.allclose(opened, average(states), rtol=0, atol=1e-6 * size)
        assert torch.equal(silos[1].base["w"], opened)


def test_a_complex_payload_that_is_new_wants_a_scale():
    new = {"w": torch.tensor([1 + 2j, -3j])}
    with pytest.raises(UpdateRefused, match="scale"):
        one_round(silos_of({"v": torch.ones(2)}, SAMPLES), [new] * 3)
    opened = one_round(silos_of({"v": torch.ones(2)}, SAMPLES, scale=4.0), [new] * 3)
    assert torch.allclose(opened[0].state["w"], new["w"])


def test_an_audit_reads_and_recovers_complex_words():
    """Guards ``Entry.complex`` in `SealTransform`, and `noise_like`."""
    before, after = ({"w": torch.randn(2, 2, dtype=torch.complex64)} for _ in range(2))
    transform, seed = SealTransform(entries_of(before), 3), torch.Generator().manual_seed(0)
    update, private = transform.protect(ClientUpdate(before, after, 1.0), seed)
    assert transform.read(update).after["w"].dtype == torch.complex64
    assert torch.allclose(transform.recover(update, private).after["w"], after["w"], rtol=1e-5)
    assert noise_like(before, None)["w"].imag.abs().min() > 0
