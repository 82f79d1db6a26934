"""The key of one job: what it is bound to, and that no stream of it serves two purposes."""

import hashlib
from itertools import combinations, product

from fedml_keylock.locks.job_key import JobKey

KEY = JobKey(bytes(range(32)))
LABEL = b"fedml-keylock job key 3"


def framed(*parts):
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def test_it_is_a_hash_of_the_secret_and_of_all_that_the_job_is_told_by():
    key = JobKey.derive(b"agreed", b"nonce", b"", b"model")
    whole = framed(LABEL, b"agreed", b"nonce", b"", b"model")
    assert key == JobKey(hashlib.sha256(whole).digest())
    # no two ways to cut the same bytes are one context
    cuts = [(), (b"",), (b"ab",), (b"a", b"b"), (b"", b"ab"), (b"ab", b"")]
    assert len({JobKey.derive(b"s", *cut).root for cut in cuts}) == len(cuts)
    assert JobKey.derive(b"s", b"ab").root != JobKey.derive(b"sab").root


def test_a_stream_is_of_its_label_and_round():
    for label, index in product(("rotation parameters", "rotation norm.running_var"), (0, 300)):
        seed = hashlib.sha256(
            framed(LABEL, KEY.root, label.encode(), index.to_bytes(8, "big"))
        ).digest()
        expected = hashlib.shake_256(seed + bytes(8)).digest(16)
        assert KEY.stream(label, index).draw(16) == expected


def test_no_two_streams_are_alike():
    drawn = [
        key.stream(label, index).draw(64)
        for key in (KEY, JobKey(bytes(32)))
        for label in ("rotation parameters", "rotation norm.running_mean")
        for index in (-1, 0, 1, 256)
    ]
    for one, two in combinations(drawn, 2):
        assert not any(one[at : at + 8] in two for at in range(0, 57, 8))


def test_the_vault_gives_it_back():
    for key in (KEY, JobKey(bytes(32)), JobKey.derive(b"s", b"m")):
        assert JobKey.from_tensor(key.tensor) == key


def test_no_secret_is_printed():
    assert repr(KEY) == "JobKey()"
