"""What a server reads, alone or with silos that collude: words that nothing tells from chance.

Each claim stands beside a test that what it says of sealed words is not true of others.
"""

import zlib
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from sealed_silos import one_round, secret, send, silos_of

from fedml_keylock.errors import UpdateRefused
from fedml_keylock.locks.sealed.encoding import Counts, Encoding
from fedml_keylock.locks.sealed.keystream import Keystream
from fedml_keylock.locks.sealed.sealing import TRAILER, RoundKeys, add_up, seal
from fedml_keylock.locks.sealed.shares import Shares

SILOS = range(4)
BOUND = 1e-4
"""The least p of a chi-square test over byte values. All keys are seeded: it holds or it does not,
and of what is not uniform p is 0."""


def state(seed, size=0.1):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (150, 100), "b": (1000,), "n": (50,)}
    made = {name: size * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**made, "n": (99 * made["n"]).long()}


FIRST = state(0)
PAYLOADS = [{n: t + (0.01 * t).to(t.dtype) for n, t in state(seed).items()} for seed in SILOS]


def line(message):
    """All words of a message, in order."""
    return np.concatenate([words.numpy().reshape(-1) for words in message.values()])


def plain(payload, place, silos=4):
    """The words of a payload before anything lies over them."""
    encoding, parts = Encoding.of(FIRST, Shares((1,) * silos)), []
    for entry, step in zip(encoding.entries, encoding.steps, strict=True):
        parts += encoding.encode(entry, step, payload[entry.name], place, Counts())
    return np.concatenate(parts)


def is_chance(words):
    """Whether words look like chance: by their bytes, and to zlib."""
    content = words.astype("<i4").tobytes()
    counts = np.bincount(np.frombuffer(content, dtype=np.uint8), minlength=256)
    gain = 1 - len(zlib.compress(content, 9)) / len(content)
    uniform, compressed = chisquare(counts).pvalue > BOUND, gain >= 0.01
    assert uniform is not compressed, "the two tests disagree"
    return uniform


def some(places):
    """Every choice of some of them, of at least one."""
    return [each for count in range(1, len(places) + 1) for each in combinations(places, count)]


@pytest.fixture(scope="module")
def sealed():
    """Silos that have sealed one round each, with all their keys, and what they have sent."""
    silos = silos_of(FIRST, (1,) * 4, keep_own=True)
    return silos, [line(message) for message in send(silos, PAYLOADS)]


def test_what_is_not_sealed_is_told_from_chance():
    """The counter-test: these are the words that lie under the masks and pads."""
    for place in SILOS:
        assert not is_chance(plain(PAYLOADS[place], place))
    assert not is_chance(sum(plain(PAYLOADS[place], place) for place in SILOS))
    assert not is_chance(np.zeros(20_000))


@pytest.mark.parametrize("places", some(SILOS))
def test_messages_and_their_sums_are_chance_to_the_server(sealed, places):
    """Guards pads and masks: ``found.append`` in `RoundKeys.covers`, and `cover` in `seal`.

    The sum of all, too: masks cancel in it, and the pad S_0 is left.
    """
    assert is_chance(sum(sealed[1][place] for place in places))


def test_the_trailer_is_chance_to_the_server():
    """Guards `cover` over counters and tags: of payloads that clip nothing, counters are 0."""
    first, trailers = {"w": torch.ones(1, 1)}, []
    for seed in range(100):
        messages = send(silos_of(first, seed=seed), [first] * 3)
        trailers += [message[TRAILER].numpy() for message in messages]
    assert is_chance(np.concatenate(trailers))
    assert all(len({*column.tolist()}) == len(trailers) for column in np.array(trailers).T)


def test_rounds_have_nothing_in_common():
    """Guards `ratcheted` and the chain: the same payload in each round, and the difference too."""
    silos, sent = silos_of(FIRST), []
    for _ in range(3):
        messages = send(silos, [FIRST] * 3)
        total = add_up(messages)
        for silo in silos:
            silo.open(total)
        sent.append([*map(line, messages), line(total)])
    for one, two in combinations(sent, 2):
        assert all(is_chance(a - b) for a, b in zip(one, two, strict=True))


def colluders_view(silos, sent, colluder):
    """What is left of the others' messages when all that a colluding silo can derive is off."""
    own = silos[colluder]._keys(silos[colluder].record.encoding)
    known = {own.pad_key(place) for place in SILOS} | {own.mask_key(n) for n in own.pairs}
    left = {}
    for place in SILOS:
        if place == colluder:
            continue
        left[place] = sent[place].copy()
        for key, sign in silos[place].record.covers:
            if key in known:
                left[place] -= sign * Keystream(key).words(len(left[place]))
    return left


@pytest.mark.parametrize("colluder", SILOS)
def test_a_colluding_silo_learns_nothing_but_the_sum_of_the_others(sealed, colluder):
    """Guards the masks in `RoundKeys.covers`, and that each is its own pair's.

    With the group secret all pads come off; what is left is chance but for the sum of all others,
    which is what the average tells a silo.
    """
    left = colluders_view(*sealed, colluder)
    for places in some(list(left)):
        total = sum(left[place] for place in places)
        if len(places) < 3:
            assert is_chance(total), places
    wanted = sum(plain(PAYLOADS[place], place) for place in left)
    assert np.array_equal(total[: len(wanted)], wanted)


def test_two_messages_under_one_keystream_give_their_difference_away():
    """The counter-test of all that follows: what a second message in a round would do."""
    keys = RoundKeys(secret("group"), {1: secret("pair"), 2: secret("other")}, 0, 3, b"context")
    encoding = Encoding.of(FIRST, Shares((1, 1, 1)))
    one, two = (line(seal(encoding, payload, keys)[0]) for payload in PAYLOADS[:2])
    assert is_chance(one)
    assert is_chance(two)
    assert not is_chance(one - two)
    wanted = plain(PAYLOADS[0], 0, 3) - plain(PAYLOADS[1], 0, 3)
    assert np.array_equal((one - two)[: len(wanted)], wanted)


def test_a_second_message_in_a_round_is_refused():
    """Guards ``_used`` in `Rounds.seal`: the same payload again, another one, and after a failure.

    A second message is sent in the next round only.
    """
    silos = silos_of(FIRST)
    messages = send(silos, PAYLOADS[:3])
    for payload in PAYLOADS:
        with pytest.raises(UpdateRefused, match=r"^round 0: it would send a second message"):
            silos[0].seal(payload)
    silos[0].open(add_up(messages))
    silos[0].seal(PAYLOADS[0])
    with pytest.raises(UpdateRefused, match=r"^round 1: it would send a second message"):
        silos[0].seal(PAYLOADS[0])


def test_a_seal_that_failed_half_way_is_not_repeated():
    """Guards ``_used = True`` before anything is derived, and ``_sealed`` after it."""
    silos = silos_of(FIRST)
    odd = {**PAYLOADS[0], "n": PAYLOADS[0]["n"].to_sparse()}
    with pytest.raises((RuntimeError, NotImplementedError)):
        silos[0].seal(odd)
    with pytest.raises(UpdateRefused, match="second message"):
        silos[0].seal(PAYLOADS[0])
    with pytest.raises(UpdateRefused, match="before this silo sent its update"):
        silos[0].open({})


def test_silos_that_received_other_models_send_each_other_noise():
    """Guards the chain in `Rounds._keys`: masks do not cancel, and no sum opens."""
    silos = [silos_of(FIRST if k else {**FIRST, "a": FIRST["a"] + 1})[k] for k in range(3)]
    total = add_up(send(silos, PAYLOADS[:3]))
    for silo in silos:
        with pytest.raises(UpdateRefused, match="not the sum"):
            silo.open(total)
    equal = silos_of(FIRST)
    assert one_round(equal, PAYLOADS[:3])
