"""The key of one job: what it is bound to, and that no stream of it serves two purposes."""

import hashlib
from itertools import combinations, product

import pytest

from fedml_keylock.locks.job_key import JobKey
from fedml_keylock.types import JobSecrets

PAIRS = {0: b"a" * 32, 2: b"b" * 32}
KEY = JobKey(bytes(range(32)), 1, PAIRS, {0: 30, 1: 10, 2: 20})


def framed(*parts):
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def test_it_is_a_hash_of_the_secret_and_of_all_that_the_job_is_told_by():
    secrets = JobSecrets(b"agreed", 1, PAIRS, {0: 3, 1: 1, 2: 2})
    key = JobKey.derive(secrets, b"model", b"", b"nonce")
    label = b"fedml-keylock job key 2"
    whole = framed(label, b"agreed", b"model", b"", b"nonce")
    assert key == JobKey(hashlib.sha256(whole).digest(), 1, PAIRS, {0: 3, 1: 1, 2: 2})
    # no two ways to cut the same bytes are one context
    cuts = [(), (b"",), (b"ab",), (b"a", b"b"), (b"", b"ab"), (b"ab", b"")]
    assert len({JobKey.derive(JobSecrets(b"s"), *cut).root for cut in cuts}) == len(cuts)
    assert JobKey.derive(JobSecrets(b"s"), b"ab").root != JobKey.derive(JobSecrets(b"sab")).root


def test_a_stream_is_of_its_label_round_and_pair():
    for label, index, peer in product(("rotation parameters", "mask w"), (0, 300), (None, 2)):
        secret = () if peer is None else (PAIRS[peer],)
        place = (KEY.root, label.encode(), index.to_bytes(8, "big"))
        seed = hashlib.sha256(framed(b"fedml-keylock job key 2", *place, *secret)).digest()
        expected = hashlib.shake_256(seed + bytes(8)).digest(16)
        assert KEY.stream(label, index, peer=peer).draw(16) == expected


def test_no_two_streams_are_alike():
    other = JobKey(bytes(32), 1, PAIRS, KEY.samples)
    strangers = JobKey(KEY.root, 1, {0: b"c" * 32, 2: PAIRS[2]}, KEY.samples)
    streams = [
        key.stream(label, index, peer=peer)
        for key in (KEY, other)
        for label in ("rotation parameters", "mask parameters", "mask norm.running_mean")
        for index in (-1, 0, 1, 256)
        for peer in (None, 0, 2)
    ]
    streams.append(strangers.stream("mask parameters", 0, peer=0))
    drawn = [stream.draw(64) for stream in streams]
    for one, two in combinations(drawn, 2):
        assert not any(one[at : at + 8] in two for at in range(0, 57, 8))


def test_both_of_a_pair_have_the_same_stream_and_who_has_no_pair_has_none():
    mate = JobKey(KEY.root, 2, {1: PAIRS[2], 0: b"x" * 32}, KEY.samples)
    assert KEY.stream("mask w", 5, peer=2).draw(8) == mate.stream("mask w", 5, peer=1).draw(8)
    with pytest.raises(KeyError):
        KEY.unpaired().stream("mask w", 5, peer=2)
    assert KEY.unpaired().root == KEY.root


def test_the_vault_gives_it_back():
    for key in (KEY, KEY.unpaired(), JobKey(bytes(32)), JobKey.derive(JobSecrets(b"s"), b"m")):
        assert JobKey.from_tensors(key.tensors) == key


def test_no_secret_is_printed():
    for key in (KEY, JobSecrets(b"agreed", 1, PAIRS)):
        assert "samples=" in repr(key)
        assert not any(word in repr(key) for word in ("aaaa", "bbbb", "agreed", "x01"))
