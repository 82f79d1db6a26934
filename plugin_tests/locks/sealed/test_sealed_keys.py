"""One key, one keystream: whatever differs between two messages, their keys have nothing in common.

Guards each part of the context in `Rounds._keys`, the labels and places in `RoundKeys`, `framed`,
and `ratcheted`.
"""

import pickle
from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from sealed_silos import one_round, secret, secrets_of, send, silos_of

from fedml_keylock.errors import PrivateStateError
from fedml_keylock.locks.sealed.keystream import derive, framed
from fedml_keylock.locks.sealed.rounds import Rounds, ratcheted
from fedml_keylock.locks.sealed.sealing import RoundKeys, add_up

FIRST = {"w": torch.ones(2, 2), "b": torch.zeros(3)}
NEW = {**FIRST, "new": torch.ones(2, 2)}


def keys_of(silos, payload=FIRST):
    """Every key of a round of these silos, and how often a keystream of it lies over words."""
    send(silos, [payload] * len(silos))
    found = Counter(key for silo in silos for key, _ in silo.record.covers)
    found.update({silo.record.tag_key for silo in silos})
    found.update({silo.record.pad_key for silo in silos})
    return found


def silos_in(round_index, first=FIRST, samples=(2, 1, 1), **more):
    """Silos that are in a round, with their secrets as they were in the first."""
    silos = silos_of(first, samples, keep_own=True, **more)
    for silo in silos:
        silo.round = round_index
    return silos


def chained(size):
    """Silos in their second round, whose first sum depends on the size; their secrets do not."""
    silos = silos_in(0)
    one_round(silos, [{**FIRST, "b": torch.full((3,), size)}] * 3)
    for silo in silos:
        silo.base = FIRST  # so that nothing but the chain is another
    return silos


def regrouped():
    """Silos with another group secret and the same pairs."""
    silos = silos_in(0)
    for silo in silos:
        silo.secrets = replace(silo.secrets, group=secret("another group"))
    return silos


def moved(shift):
    """Silos of a job in which others have their indices: the same secrets at other places."""
    silos = silos_in(0)
    for silo in silos:
        pairs = {other + shift: pair for other, pair in silo.secrets.pairs.items()}
        samples = {other + shift: n for other, n in silo.secrets.samples.items()}
        own = silo.secrets.silo + shift
        silo.secrets = replace(silo.secrets, silo=own, pairs=pairs, samples=samples)
    return silos


BASE = {
    "transcript": lambda: silos_in(0),
    "round": lambda: silos_in(0),
    "first model": lambda: silos_in(0),
    "schema": lambda: silos_in(0),
    "shares": lambda: silos_in(0),
    "participants": lambda: silos_in(0, samples=(2, 1, 1, 1)),
    "who takes part": lambda: silos_in(0),
    "neighbours": lambda: silos_in(0, samples=(1,) * 5, colluders=0),
    "steps": lambda: silos_in(0, scale=1.0),
    "chain": lambda: chained(1.0),
    "seed": lambda: silos_in(0),
}
OTHER = {
    "transcript": lambda: silos_in(0, transcript=b"another"),
    "round": lambda: silos_in(1),
    "first model": lambda: silos_in(0, {**FIRST, "b": torch.tensor([0.0, 0.0, -0.0])}),
    "schema": lambda: silos_in(0),
    "shares": lambda: silos_in(0, samples=(1, 2, 1)),
    "participants": lambda: silos_in(0),
    "who takes part": lambda: moved(1),
    "neighbours": lambda: silos_in(0, samples=(1,) * 5, colluders=2),
    "steps": lambda: silos_in(0, scale=2.0),
    "chain": lambda: chained(2.0),
    "seed": lambda: silos_in(0, seed=1),
}
PAYLOADS = {
    "schema": (FIRST, {"w": FIRST["w"]}),
    "steps": (NEW, NEW),
}


@pytest.mark.parametrize("what", BASE)
def test_all_keys_differ_when(what):
    """Pads, masks and tags alike."""
    payload, other = PAYLOADS.get(what, (FIRST, FIRST))
    one, again, two = (
        keys_of(BASE[what](), payload),
        keys_of(BASE[what](), payload),
        keys_of(OTHER[what](), other),
    )
    assert one == again, "the test itself draws something"
    assert len(one) >= 7
    assert not one.keys() & two.keys()


def test_masks_differ_with_the_pair_alone_and_pads_with_the_group_alone():
    one, two = keys_of(silos_in(0)), keys_of(regrouped())
    assert len(one.keys() & two.keys()) == 3  # masks: no pair has another secret
    assert len(one.keys() - two.keys()) == 4  # S_0, S_1, S_2, and the tag's


@pytest.mark.parametrize("silos", [2, 3, 6])
def test_each_keystream_lies_over_the_words_of_those_it_is_for(silos):
    """Masks over two silos' words, pads over two's but for S_0, which is over one's and the sum."""
    found = keys_of(silos_in(0, samples=(1,) * silos))
    assert len(found) == silos * (silos - 1) // 2 + silos + 1
    assert Counter(found.values()) == Counter(
        {2: silos * (silos - 1) // 2 + silos, 1: 1}  # S_0 and silo 0's word; the tag's once
    )


def test_no_key_is_met_again_in_later_rounds():
    silos, seen = silos_in(0), Counter()
    for _ in range(4):
        sent = send(silos, [FIRST] * 3)
        seen.update({key for silo in silos for key, _ in silo.record.covers})
        seen.update({silos[0].record.tag_key})
        total = add_up(sent)
        for silo in silos:
            silo.open(total)
    assert len(seen) == 4 * 7
    assert {*seen.values()} == {1}


def test_two_neighbours_have_one_mask_and_opposite_signs():
    silos = silos_in(0)
    send(silos, [FIRST] * 3)
    signs = {}
    for silo in silos:
        for key, sign in silo.record.covers:
            signs.setdefault(key, []).append(sign)
    once = [found for found in signs.values() if len(found) == 1]
    assert once == [[1]]
    assert all(sorted(found) == [-1, 1] for found in signs.values() if len(found) > 1)


def test_keys_of_one_context_have_a_purpose_and_a_place():
    """Guards labels and places: also where a pair's secret is the group's."""
    one = RoundKeys(bytes(32), {1: bytes(32), 2: bytes(32)}, 0, 3, b"context")
    keys = [one.tag_key(), *(one.pad_key(k) for k in range(3)), one.mask_key(1), one.mask_key(2)]
    keys += [replace(one, place=1, pairs={2: bytes(32)}).mask_key(2)]
    keys += [derive(bytes(32), label, b"context") for label in ("ratchet", "notice", "farewell")]
    assert len({*keys}) == 10


def test_framing_keeps_parts_apart():
    """Guards `framed`: or (round 1, chain 2) could be (round 12, no chain)."""
    ways = [
        [b"ab", b"c"],
        [b"a", b"bc"],
        [b"abc"],
        [b"abc", b""],
        [b"", b"abc"],
        [b"", b"", b"abc"],
    ]
    assert len({framed(*parts) for parts in ways}) == len(ways)
    assert len({derive(bytes(32), "x", *parts) for parts in ways}) == len(ways)
    assert derive(bytes(32), "xa", b"b") != derive(bytes(32), "x", b"ab")


# the ratchet


def test_the_ratchet_changes_every_secret_and_nothing_else():
    """Guards `ratcheted`."""
    secrets, seen = secrets_of((1, 2, 3))[1], set()
    for _ in range(5):
        now = ratcheted(secrets)
        assert replace(now, group=secrets.group, pairs=secrets.pairs) == secrets
        assert now.pairs.keys() == secrets.pairs.keys()
        seen |= {secrets.group, *secrets.pairs.values()}
        assert not seen & {now.group, *now.pairs.values()}
        secrets = now
    assert len(seen) == 15


def test_secrets_ratchet_when_a_sum_is_opened_and_not_before():
    """Guards the last line of `Rounds.open`: what opened a round is not there any more."""
    silos = silos_in(0)
    before = [silo.secrets for silo in silos]
    total = add_up(send(silos, [FIRST] * 3))
    assert [silo.secrets for silo in silos] == before
    for silo in silos:
        silo.open(total)
    assert [silo.secrets for silo in silos] == [ratcheted(each) for each in before]
    # with the secrets of before, the round's keys are there; with those of after, they are not
    held = []
    for secrets in (before, [silo.secrets for silo in silos]):
        held.append([Rounds(each, keep_own=True) for each in secrets])
        for silo in held[-1]:
            silo.begin(FIRST)
    old, new = map(keys_of, held)
    assert keys_of(silos_in(0)) == old
    assert not old.keys() & new.keys()


def test_nothing_shows_secrets_by_accident():
    """Guards ``repr=False`` and `Private`: neither a log line nor a pickle has them."""
    silo = silos_in(0)[0]
    silo.seal(FIRST, samples=2)
    keys = silo._keys(silo.record.encoding)
    secrets = [silo.secrets.group, *silo.secrets.pairs.values()]
    secrets += [key for key, _ in silo.record.covers] + [silo.record.tag_key]
    for shown in map(repr, (silo, silo.secrets, silo.record, keys)):
        assert not any(repr(each)[2:-1] in shown or each.hex() in shown for each in secrets)
    with pytest.raises(PrivateStateError):
        pickle.dumps(silo)


def test_any_two_silos_have_a_secret_of_their_own():
    """What the other tests stand on."""
    secrets = secrets_of((1,) * 4)
    for one, two in combinations(secrets, 2):
        assert one.pairs[two.silo] == two.pairs[one.silo]
    assert len({pair for each in secrets for pair in each.pairs.values()}) == 6
