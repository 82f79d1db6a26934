"""Fixed point: no sum wraps, what is clipped is counted, and averages are as exact as they say."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sealed_silos import bits_of, one_round, secret, send, silos_of

from fedml_keylock.errors import UpdateRefused
from fedml_keylock.locks.sealed.encoding import Counts, Encoding
from fedml_keylock.locks.sealed.entries import entries_of
from fedml_keylock.locks.sealed.keystream import Keystream
from fedml_keylock.locks.sealed.sealing import TRAILER, RoundKeys, add_up, seal
from fedml_keylock.locks.sealed.shares import Shares

SILOS = [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33, 63, 64, 65, 99, 100]
SAMPLES = {
    "equal": lambda place: 1,
    "rising": lambda place: 3 * place + 1,
    "one has nearly all": lambda place: 10**12 if place == 0 else 1,
    "prime": lambda place: 7919 + 104729 * (place % 5),
}


def words_of(encoding, payload, place=0):
    """The words of each entry, and what was counted."""
    counts, found = Counts(), {}
    for entry, step in zip(encoding.entries, encoding.steps, strict=True):
        parts = encoding.encode(entry, step, payload[entry.name], place, counts)
        found[entry.name] = [int(word) for part in parts for word in part]
    return found, counts


def averaged(first, payloads, samples):
    """The average as a job without keystreams decodes it, and what was counted."""
    encoding, counts, made = Encoding.of(first, Shares.of(samples)), Counts(), {}
    for entry, step in zip(encoding.entries, encoding.steps, strict=True):
        total = np.zeros(math.prod(entry.wire_shape), dtype=np.int64)
        for place, payload in enumerate(payloads):
            parts = encoding.encode(entry, step, payload[entry.name], place, counts)
            total += np.concatenate([np.zeros(0, dtype=np.int32), *parts])
        assert (total == total.astype(np.int32)).all()
        made[entry.name] = encoding.decode(entry, step, [total.astype(np.int32)])
    return made, counts


# no sum wraps


@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize("silos", SILOS)
def test_no_sum_of_words_wraps_however_far_all_silos_clip(silos, samples):
    """Guards `Shares.bound` and `Shares.low_bits`, the clamps, and both words of two.

    In Python integers: all silos at one end of the range, at the other, and just below 0, where the
    low word is at its largest.
    """
    shares = Shares(tuple(SAMPLES[samples](place) for place in range(silos)))
    first = {
        "matrix": torch.zeros(1, 3),
        "vector": torch.zeros(3),
        "double": torch.zeros(1, 3, dtype=torch.float64),
        "integer": torch.zeros(3, dtype=torch.int64),
    }
    ends = torch.tensor([1e30, -1e30, -1e-9], dtype=torch.float64)
    payload = {
        "matrix": ends.float()[None],
        "vector": ends.float(),
        "double": ends[None],
        "integer": torch.tensor([2**62, -(2**62), -1]),
    }
    encoding = Encoding.of(first, shares)
    sums = dict.fromkeys(first, 0)
    for place in range(silos):
        words, counts = words_of(encoding, payload, place)
        assert counts.clipped >= 8
        sums = {name: sums[name] + np.array(words[name], dtype=object) for name in first}
    for name, total in sums.items():
        assert all(-(2**31) < word < 2**31 for word in total), name
        if name != "matrix":
            assert all(0 <= word < 2**31 for word in total[:3])
    # and the range is used: not a bit of it is given away
    if samples == "equal":
        assert sums["matrix"][0] >= 2**31 - 1 - 2 * silos
        assert sums["vector"][3] >= 2**31 - 1 - 3 * silos


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 10**15), min_size=1, max_size=100))
def test_the_bounds_of_all_silos_sum_to_less_than_2_to_the_31(samples):
    """Guards `Shares.bound` and `Shares.low_bits` for any samples."""
    shares, silos = Shares(tuple(samples)), len(samples)
    assert sum(shares.bound(place) for place in range(silos)) < 2**31
    assert silos * (2**shares.low_bits - 1) < 2**31 < 2 * silos * 2**shares.low_bits + 1


# the grid


@pytest.mark.parametrize(
    ("largest", "exponent"),
    [
        (1.0, 0),
        (math.nextafter(1, 2), 1),
        (0.5, -1),
        (0.75, 0),
        (2.0**-140, -140),
        (3e38, 128),
        (0.0, 0),
        (math.inf, 0),
    ],
)
def test_a_step_follows_the_largest_finite_number(largest, exponent):
    """Guards `_size`, `_exponent`, HEADROOM, HEADROOM_VECTOR, and what an infinity must not do."""
    base = torch.tensor([[-largest, 0.0, torch.nan, -torch.inf]], dtype=torch.float64)
    first = {"double": base, "matrix": base.float(), "vector": base.float()[0]}
    if largest == math.nextafter(1, 2):
        first = {"double": base}
    steps = dict(zip(sorted(first), Encoding.of(first, Shares((1, 1, 1))).steps, strict=True))
    wanted = {"double": 4 - 31 - 29, "matrix": 4 - 31, "vector": 22 - 31 - 29}
    assert steps == {name: wanted[name] + exponent for name in first}


@pytest.mark.parametrize("size", [5e-324, 1e-300, 1e-30, 1e30, 1.7e308])
def test_float64_of_any_size_is_averaged(size):
    """Guards LEAST: a step of 2^-1057 has no inverse in float64, and the job ended by it."""
    first = {"w": torch.full((2, 2), size, dtype=torch.float64)}
    opened = one_round(silos_of(first), [first, {"w": first["w"] * 0}, {"w": first["w"] * 0.5}])
    assert torch.allclose(opened[0].state["w"], first["w"] / 2, rtol=1e-9, atol=1e-300)
    assert (opened[0].counts.clipped, opened[0].counts.infinite) == (0, 0)


def test_shares_are_positive():
    """Guards ``max(1, ...)``: a share of 0 divided by zero where there are integers."""
    assert Shares.of([1e-9, 100.5, 3]).samples == (1, 13172736, 393216)
    first = {"count": torch.tensor([5, 6])}
    opened = one_round(silos_of(first, (1e-9, 100.5, 3)), [{"count": torch.tensor([7, 6])}] * 3)
    assert opened[0].state["count"].tolist() == [7, 6]


@pytest.mark.filterwarnings("ignore:torch.quantize")
def test_what_cannot_be_added_up_is_refused_by_name():
    """Guards `_entry`."""
    for odd in (
        torch.zeros(2, dtype=torch.float8_e4m3fn),
        torch.zeros(2, dtype=torch.uint64),
        torch._empty_affine_quantized([2], scale=0.1, zero_point=0, dtype=torch.quint8),
    ):
        with pytest.raises(UpdateRefused, match=r"^a\.odd is .*, which lock: sealed cannot add up"):
            entries_of({"a.odd": odd, "w": torch.zeros(2)})


def test_the_layout_depends_on_the_schema_only():
    """Guards `entries_of` and `Entry.wire_shape`: no value shows in a message's form."""
    shapes = {"w": (3, 4), "b": (5,), "s": (), "none": (0, 2), "d": (2, 2), "n": (3,)}
    shapes |= {"row": (1, 4), "scale": (5, 1, 1)}

    def state(value):
        made = {name: torch.full(shape, value) for name, shape in shapes.items()}
        return {**made, "d": made["d"].double(), "n": made["n"].nan_to_num(7.0).to(torch.int64)}

    def form(message):
        return [(name, words.dtype, tuple(words.shape)) for name, words in message.items()]

    forms = [
        form(message)
        for first in (0.0, 1e-30, 3e5, -torch.inf)
        for payload in (0.0, 1e30, torch.nan)
        for message in send(silos_of(state(first)), [state(payload)] * 3)
    ]
    wanted = {**shapes, "b": (2, 5), "scale": (2, 5, 1, 1), "s": (2,), "d": (2, 2, 2), "n": (2, 3)}
    assert forms == [[*((n, torch.int32, wanted[n]) for n in sorted(wanted)), forms[0][-1]]] * 36
    assert forms[0][-1] == (TRAILER, torch.int32, (10,))


# what is counted


def test_counts_are_those_of_all_silos_and_name_no_tensor():
    """Guards the two counters: in `_rounded`, `_integers`, `Counts.add`, `seal` and `open_sum`."""
    first = {"w": torch.ones(2, 3), "b": torch.ones(4), "n": torch.zeros(2, dtype=torch.int64)}
    payloads = [dict(first) for _ in range(3)]
    payloads[0]["w"] = torch.tensor([[1.0, 99.0, -99.0], [torch.nan, 16.9, -14.9]])
    payloads[1]["b"] = torch.tensor([1.0, torch.inf, -torch.inf, 1e30])
    payloads[1]["n"] = torch.tensor([-(2**62), 5])
    silos = silos_of(first)
    sent = [silo.seal(payload) for silo, payload in zip(silos, payloads, strict=True)]
    own = [(counts.clipped, counts.infinite, counts.names) for _, counts in sent]
    assert own == [(2, 1, ["w"]), (2, 2, ["b", "n"]), (0, 0, [])]
    for silo in silos:
        opened = silo.open(add_up([message for message, _ in sent]))
        assert opened.counts == Counts(4, 3, [])
        assert torch.isfinite(opened.state["w"]).all()


@pytest.mark.parametrize("place", [0, 1])
def test_a_difference_beyond_float64_is_counted_as_infinite(place):
    """Guards ``isfinite(moved)``: of finite numbers, its difference is not, and was sent as 0."""
    first = {"w": torch.tensor([[1.7e308, 1.0], [-torch.inf, torch.nan]], dtype=torch.float64)}
    encoding = Encoding.of(first, Shares((1, 1)))
    words, counts = words_of(encoding, {"w": -first["w"]}, place)
    assert (counts.clipped, counts.infinite, counts.names) == (0, 2, ["w"])
    assert [words["w"][k] for k in (0, 4, 2, 6)] == [0] * 4


def test_a_counter_never_outgrows_its_word():
    """Guards ``min(..., most)`` in `seal`: of 2^29 silos, a counter may say 3 at the most."""
    first = {"w": torch.zeros(1, 9)}
    keys = RoundKeys(secret("group"), {}, 0, 2**29, b"context")
    payload = {"w": torch.tensor([[99.0] * 4 + [torch.nan] * 5])}
    message, counts = seal(Encoding.of(first, Shares((1, 1))), payload, keys)
    assert (counts.clipped, counts.infinite) == (4, 5)
    (pad, _), (next_pad, _) = keys.covers()
    cover = Keystream(pad).words(11) - Keystream(next_pad).words(11)
    assert (message[TRAILER].numpy()[:2] - cover[9:]).tolist() == [3, 3]


# what averages are


@pytest.mark.parametrize(("shape", "rounds"), [((2, 2), 3), ((4,), 2), ((), 2)])
def test_what_was_clipped_is_right_a_round_or_two_later(shape, rounds):
    """The range follows what has come: a matrix by 2^4 a round, vectors by 2^22. Guards `_size`."""
    target = {"w": torch.full(shape, 600.0 if len(shape) == 2 else 3e8)}
    silos = silos_of({"w": torch.ones(shape)}, (3, 1, 2))
    clipped = []
    for _ in range(rounds):
        opened = one_round(silos, [target] * 3)[0]
        clipped.append(opened.counts.clipped > 0)
    assert clipped == [True] * (rounds - 1) + [False]
    assert torch.equal(opened.state["w"], target["w"])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool])
@pytest.mark.parametrize("samples", [(1, 1, 1), (3, 2, 1, 1), (1.5, 1), (7,)])
def test_the_average_of_integers_is_the_rounded_exact_mean(dtype, samples):
    """Guards `_integers` and the division in `Encoding.decode`; halves go up."""
    generator = torch.Generator().manual_seed(0)
    top = 2 if dtype == torch.bool else 200
    states = [
        {"n": torch.randint(0, top, (50,), generator=generator).to(dtype)}
        for _ in range(len(samples) + 1)
    ]
    if dtype.is_signed:
        states = [{"n": (1000 * state["n"].long() - 99_999).to(dtype)} for state in states]
    opened = one_round(silos_of(states[0], samples), states[1:])
    whole = [Fraction(number) for number in samples]
    means = [
        sum(n * int(state["n"][k]) for n, state in zip(whole, states[1:], strict=True)) / sum(whole)
        for k in range(50)
    ]
    assert opened[0].state["n"].long().tolist() == [math.floor(m + Fraction(1, 2)) for m in means]
    assert opened[0].state["n"].dtype == dtype


def trained(silos):
    """A first model like a ResNet-18, with what is hard in it, and what silos make of it."""
    generator = torch.Generator().manual_seed(silos)
    shapes = {"conv1": (64, 3, 7, 7), "conv": (96, 48, 3, 3), "fc": (100, 512), "emb": (300, 64)}
    first = {
        name: torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5
        for name, shape in shapes.items()
    }
    first["bias"] = 0.01 * torch.randn(100, generator=generator)
    first["bias"][3] = 1e5
    first["running_var"] = 10 ** (7 * torch.rand(512, generator=generator) - 3)
    first["running_mean"] = torch.randn(512, generator=generator)
    first["norm"] = torch.ones(512)
    payloads = [
        {
            name: tensor + 0.01 * (tensor + 0.1) * torch.randn(tensor.shape, generator=generator)
            for name, tensor in first.items()
        }
        for _ in range(silos)
    ]
    samples = torch.randint(20, 1000, (silos,), generator=generator).tolist()
    return first, payloads, samples


@pytest.mark.parametrize("silos", [3, pytest.param(100, marks=pytest.mark.long)])
def test_the_error_is_at_most_three_times_that_of_fedmls_own_float32(silos):
    """Guards the headrooms, the rounding and the float64 of decoding: by rms, tensor by tensor."""
    first, payloads, samples = trained(silos)
    total = sum(samples)
    made, counts = averaged(first, payloads, samples)
    assert (counts.clipped, counts.infinite) == (0, 0)
    for name in first:
        exact = sum(p[name].double() * n for p, n in zip(payloads, samples, strict=True)) / total
        fedml = sum(p[name] * (n / total) for p, n in zip(payloads, samples, strict=True))

        def rms(tensor, exact=exact):
            return float((tensor.double() - exact).square().mean().sqrt())

        assert rms(made[name]) <= 3 * rms(fedml), name


@pytest.mark.parametrize("silos", [3, pytest.param(100, marks=pytest.mark.long)])
def test_every_entry_is_right_to_the_steps_that_silos_round_by(silos):
    """Guards `_rounded`: to nearest, by this silo's share. Tensors of zeros are on a grid for 1."""
    first, payloads, samples = trained(silos)
    for name in ("running_mean", "fc"):
        payloads = [{**p, name: (p[name] - first[name]) / 100} for p in payloads]
        first[name] = torch.zeros_like(first[name])
    made, _ = averaged(first, payloads, samples)
    encoding = Encoding.of(first, Shares.of(samples))
    for entry, step in zip(encoding.entries, encoding.steps, strict=True):
        exact = sum(p[entry.name].double() * n for p, n in zip(payloads, samples, strict=True))
        error = (made[entry.name].double() - exact / sum(samples)).abs()
        ulp = made[entry.name].abs().double() * 2**-24
        assert bool((error <= (silos / 2 + 0.01) * 2.0**step + ulp).all()), entry.name


def test_all_silos_decode_the_same_bits():
    """Guards that decoding depends on nothing that is a silo's own."""
    first, payloads, samples = trained(3)
    opened = one_round(silos_of(first, samples), payloads)
    made, _ = averaged(first, payloads, samples)
    assert [bits_of(one.state) for one in opened] == [bits_of(made)] * 3
