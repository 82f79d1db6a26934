"""Messages, sums and averages are those of a second, naive implementation, bit for bit."""

import naive_sealed as naive
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sealed_silos import bits_of, secrets_of, send, silos_of

from fedml_keylock.locks.sealed import encoding
from fedml_keylock.locks.sealed.keystream import Keystream
from fedml_keylock.locks.sealed.sealing import TRAILER, add_up

DTYPES = {
    torch.float16: 3,
    torch.bfloat16: 20,
    torch.float32: 20,
    torch.float64: 300,
    torch.int64: 40,
    torch.int32: 20,
    torch.int16: 10,
    torch.uint8: 6,
    torch.bool: 0,
}
"""Types, and the most binary orders of magnitude that their numbers are away from 1."""
SHAPES = [(), (1,), (4,), (0,), (2, 3), (0, 2), (3, 1, 2), (2, 3, 2, 2)]
LAYOUTS = ["plain", "transposed", "every other", "channels_last", "expanded"]
UPDATES = [0.0, 1e-6, 1e-3, 1.0, 40.0, 1e9]
"""Sizes of what a silo moves, beside its tensor's: the last ones clip."""


def laid_out(tensor, layout):
    """The same numbers, otherwise in memory."""
    if layout == "transposed" and tensor.dim() >= 2:
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "every other" and tensor.dim():
        wide = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1], dtype=tensor.dtype)
        wide[..., ::2] = tensor
        return wide[..., ::2]
    if layout == "channels_last" and tensor.dim() == 4:
        return tensor.to(memory_format=torch.channels_last)
    if layout == "expanded" and tensor.dim() and tensor.shape[0]:
        return tensor[:1].expand_as(tensor)
    return tensor


def cast(numbers, dtype):
    """Numbers as a type has them: whole, and in its range."""
    if dtype.is_floating_point:
        return numbers.to(dtype)
    if dtype == torch.bool:
        return numbers > 0
    info = torch.iinfo(dtype)
    return numbers.round().clamp(max(info.min, -(2.0**40)), min(info.max, 2.0**40)).to(dtype)


@st.composite
def jobs(draw):
    """A first model, what each silo sends in each of two rounds, samples, and colluders."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(1, 6))
    samples = draw(
        st.one_of(
            st.lists(st.integers(1, 10**6), min_size=count, max_size=count),
            st.lists(st.floats(1e-6, 1e4), min_size=count, max_size=count),
        )
    )
    first, rounds = {}, [[{} for _ in range(count)] for _ in range(2)]
    for index in range(draw(st.integers(1, 4))):
        name = f"{draw(st.sampled_from(['w', 'b', 'é', 'block.1']))}{index}"
        dtype, shape = draw(st.sampled_from([*DTYPES])), draw(st.sampled_from(SHAPES))
        layout, move = draw(st.sampled_from(LAYOUTS)), draw(st.sampled_from(UPDATES))
        size = 2.0 ** draw(st.integers(-DTYPES[dtype], DTYPES[dtype]))
        constant = torch.zeros(shape, dtype=torch.bool)
        if dtype.is_floating_point and draw(st.booleans()):
            constant = torch.rand(shape, generator=generator) < 0.3
        odd = draw(st.sampled_from([-torch.inf, torch.inf, torch.nan]))

        def drawn(around=0.0, *, size=size, shape=shape):
            normal = torch.randn(shape, generator=generator, dtype=torch.float64)
            return around + size * normal

        base = drawn()
        first[name] = laid_out(cast(base.masked_fill(constant, odd), dtype), layout)
        diverged = draw(st.booleans()) and dtype.is_floating_point
        begins = draw(st.sampled_from(["none", "some", "all"]))
        for number, payloads in enumerate(rounds):
            for place, payload in enumerate(payloads):
                new = drawn(base, size=size * move)
                if begins == "none" or (begins == "some" and place == number):
                    new = new.masked_fill(constant, odd)
                if diverged and number:
                    new[torch.rand(shape, generator=generator) < 0.2] = torch.inf
                payload[name] = laid_out(cast(new, dtype), layout)
        if draw(st.booleans()):  # as with tied weights
            for state in (first, *rounds[0], *rounds[1]):
                state[f"tied to {name}"] = state[name]
    return first, rounds, samples, draw(st.sampled_from([None, 0, 1, 2, 3]))


def naive_silos(first, samples, colluders=None, *, seed=0):
    """Silos with the same secrets as those of `silos_of`."""
    silos = [
        naive.Silo(s.silo, s.group, dict(s.pairs), [*samples], s.transcript, colluders)
        for s in secrets_of(samples, seed=seed)
    ]
    for silo in silos:
        silo.begin(naive.state_of(first))
    return silos


def message_of(message):
    """The product's message as the naive implementation has it."""
    found = {name: words.reshape(-1).tolist() for name, words in message.items()}
    return naive.Message({n: w for n, w in found.items() if n != TRAILER}, found[TRAILER])


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
@given(jobs())
def test_whole_rounds_are_those_of_the_naive_implementation(job):
    """Guards every line of keystream, encoding, tag, sealing, neighbours and rounds that computes.

    Messages word for word, sums, the opened average bit for bit in every silo, and its counters.
    """
    first, rounds, samples, colluders = job
    ours = silos_of(first, samples, colluders=colluders)
    theirs = naive_silos(first, samples, colluders)
    for payloads in rounds:
        sent = [
            silo.seal(payload, samples=number)[0]
            for silo, payload, number in zip(ours, payloads, samples, strict=True)
        ]
        wanted = [
            silo.seal(naive.state_of(payload))
            for silo, payload in zip(theirs, payloads, strict=True)
        ]
        assert [message_of(one) for one in sent] == wanted
        total = add_up(sent)
        assert message_of(total) == naive.added(wanted)
        opened = [silo.open(total) for silo in ours]
        state, counts = theirs[0].open(naive.added(wanted))
        assert naive.state_of(opened[0].state) == state
        assert (opened[0].counts.clipped, opened[0].counts.infinite) == (
            counts.clipped,
            counts.infinite,
        )
        assert all(bits_of(one.state) == bits_of(opened[0].state) for one in opened)
        for silo in theirs[1:]:
            silo.open(naive.added(wanted))
        assert [silo._chain for silo in ours] == [silo.chain for silo in theirs]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
def test_words_do_not_depend_on_how_many_are_worked_on_at_once(chunk, monkeypatch):
    """Guards the loops over CHUNK in `Encoding.encode`, and over `chunks` wherever they are."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"w": (5, 9), "b": (20,), "d": (3, 7), "n": (2, 8)}
    first = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    first["d"], first["n"] = first["d"].double(), first["n"].to(torch.int64)
    payloads = [{n: t * factor for n, t in first.items()} for factor in (2, 3, 4)]
    whole = silos_of(first)
    sent = send(whole, payloads)
    opened = whole[0].open(add_up(sent))
    monkeypatch.setattr(encoding, "CHUNK", chunk)
    parts = silos_of(first, keep_own=True)
    again = send(parts, payloads)
    assert [bits_of(one) for one in again] == [bits_of(one) for one in sent]
    assert bits_of(parts[0].open(add_up(again)).state) == bits_of(opened.state)
    own = parts[1].record.uncover(again[1])
    assert all(torch.allclose(own[name].double(), first[name].double() * 3) for name in first)


def test_a_keystream_is_the_same_in_pieces_of_any_size():
    """Guards `Keystream._draw`: pieces below, at, and beyond the block of zeros that it has."""
    key, most = bytes(range(32)), 1 << 19
    whole = Keystream(key).words(3 * most + 9)
    stream = Keystream(key)
    parts = [stream.words(count) for count in (1, most - 1, most, most + 4, 5)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(Keystream(key).longs(most + 3), whole[: 2 * most + 6].view("<i8"))
    assert whole[:99].tolist() == naive.words(key, 99)
