"""The roster: who may speak for a rank, and what its files must be."""

from __future__ import annotations

import pytest

from fedml_keylock.errors import ConfigError, HostError, VaultError
from fedml_keylock.host.key_agreement import Handshake
from fedml_keylock.host.roster import SIGNATURE, Roster, add_key, new_identity, read_roster


@pytest.fixture
def files(tmp_path):
    """A roster of three silos, whose identities are called after their ranks."""
    for rank in (1, 2, 3):
        add_key(tmp_path / "roster", rank, new_identity(tmp_path / f"own-{rank}"))
    return tmp_path


def load(files, rank, identity="own-{rank}"):
    return Roster.load(files / "roster", str(files / identity), rank=rank)


def test_each_silo_is_verified_by_all_others(files):
    rosters = {rank: load(files, rank) for rank in (1, 2, 3)}
    for signer, own in rosters.items():
        signature = own.sign(b"hello")
        assert len(signature) == SIGNATURE
        for other in rosters.values():
            other.verify(b"hello", signature, rank=signer)
            for message, rank in ((b"hellp", signer), (b"hello", signer % 3 + 1)):
                with pytest.raises(HostError, match=f"rank {rank} is not who keylock.roster says"):
                    other.verify(message, signature, rank=rank)
        with pytest.raises(HostError, match="it has no key of rank 4, which takes part"):
            own.verify(b"hello", signature, rank=4)


def test_an_identity_is_its_owner_s_only_and_new(files):
    assert all((files / f"own-{rank}").stat().st_mode & 0o777 == 0o600 for rank in (1, 2, 3))
    assert len({(files / f"own-{rank}").read_text() for rank in (1, 2, 3)}) == 3
    assert len({*read_roster(files / "roster").values()}) == 3
    assert (files / "own-1").read_text() not in (files / "roster").read_text()


def test_another_rank_s_identity_is_refused(files):
    with pytest.raises(ConfigError, match=r"not the key that keylock.roster has for rank 2"):
        load(files, 2, "own-1")
    with pytest.raises(ConfigError, match="for rank 4"):
        load(files, 4, "own-1")


def test_an_identity_that_others_may_read_or_that_is_none_is_refused(files):
    with pytest.raises(VaultError, match="identity"):
        load(files, 1, "none")
    (files / "odd").touch(mode=0o600)
    for text in ("", "00" * 31, "00" * 33, "zz" * 32):
        (files / "odd").write_text(text)
        with pytest.raises(ConfigError, match=r"keylock.identity: .*odd holds no key: .*init"):
            load(files, 1, "odd")
    (files / "own-1").chmod(0o644)
    with pytest.raises(VaultError, match="identity"):
        load(files, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file"),
        ("", "has no keys: fedml-keylock roster add"),
        ("[1, 2]", "has no keys"),
        ("1: abc", "must hold lines of RANK: KEY, 64 hexadecimal digits, and has 1"),
        ("one: " + "0" * 64, "and has 'one'"),
        ("1: " + "G" * 64, "and has 1"),
        ("{", "is not YAML"),
        (b"\xff\xfe", "is not YAML"),
    ],
)
def test_what_is_no_roster_is_refused(tmp_path, text, said):
    path = tmp_path / "roster"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=f"^keylock.roster: .*{said}"):
        read_roster(path)


def test_a_key_of_digits_is_a_key_still(tmp_path):
    """YAML would take it for a number, and one that begins with 0 for another one."""
    for key in ("1" * 64, "0" * 63 + "7", "1e" + "2" * 62, "0" * 64):
        path = tmp_path / f"roster-{key[:2]}-{key[-1]}"
        add_key(path, 1, key)
        assert read_roster(path) == {1: key}


def test_a_key_is_added_once(files):
    keys = read_roster(files / "roster")
    add_key(files / "roster", 1, keys[1])
    assert read_roster(files / "roster") == keys
    with pytest.raises(ConfigError, match="rank 1 has another key already; take its line out"):
        add_key(files / "roster", 1, new_identity(files / "new"))
    with pytest.raises(ConfigError, match="rank 2 has this key: each silo needs an identity"):
        add_key(files / "roster", 1, keys[2])
    with pytest.raises(ConfigError, match=r"no public key: it is 64 hexadecimal digits"):
        add_key(files / "roster", 4, keys[2][1:])
    with pytest.raises(ConfigError, match=r"is a directory|Is a directory"):
        add_key(files, 4, keys[2])


def test_an_identity_is_not_written_over(files):
    before = (files / "own-1").read_text()
    with pytest.raises(VaultError):
        new_identity(files / "own-1")
    assert (files / "own-1").read_text() == before


def test_a_hello_in_another_s_name_is_refused(files):
    """Also from whoever has the group's key, and a place in the roster."""
    shakes = {r: Handshake(r, 5.0, b"f" * 32, load(files, r)) for r in (1, 2, 3)}
    hellos = {rank: shake.hello for rank, shake in shakes.items()}
    made = {rank: shake.complete(hellos) for rank, shake in shakes.items()}
    assert len({one.group for one in made.values()}) == 1
    insider = Handshake(3, 5.0, b"f" * 32, load(files, 3))
    insider.rank = 2  # signs with its own key, for another rank
    with pytest.raises(HostError, match=r"rank 2 is not who keylock.roster says"):
        shakes[1].complete({**hellos, 2: insider.hello})
    unsigned = Handshake(2, 5.0, b"f" * 32)
    with pytest.raises(HostError, match=r"rank 2 sent .* bytes, not"):
        shakes[1].complete({**hellos, 2: unsigned.hello})
