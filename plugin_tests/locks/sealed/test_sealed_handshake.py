"""Key agreement: all silos derive the same from their hellos, and whoever changes one is named."""

import struct
import sys
from collections import defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from threading import Lock
from types import SimpleNamespace

import naive_sealed as naive
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sealed_silos import bits_of, one_round
from torch import nn

from fedml_keylock.builtin import keylock
from fedml_keylock.errors import ConfigError, HostError, UpdateRefused
from fedml_keylock.host import key_agreement, mailbox
from fedml_keylock.host.gate import HELLOS, JOB_NONCE, EntryNames
from fedml_keylock.host.key_agreement import Handshake, agree
from fedml_keylock.host.mailbox import Mailbox
from fedml_keylock.host.observer import Observer
from fedml_keylock.host.roster import Roster
from fedml_keylock.host.silo_session import SiloSession
from fedml_keylock.locks.sealed.rounds import Rounds

FILE = bytes(range(32))
RANKS = (1, 2, 3)
SAMPLES = {1: 100.0, 2: 50.5, 3: 7.0}


def identity(rank):
    return bytes([rank] * 32)


def public(rank):
    key = Ed25519PrivateKey.from_private_bytes(identity(rank))
    return key.public_key().public_bytes_raw().hex()


def roster(rank, keys=None):
    return Roster(keys or {rank: public(rank) for rank in RANKS}, identity(rank), rank=rank)


def shakes(*, file=FILE, signed=False):
    return {
        rank: Handshake(rank, SAMPLES[rank], file, roster(rank) if signed else None)
        for rank in RANKS
    }


def hellos_of(silos):
    return {rank: shake.hello for rank, shake in silos.items()}


def flipped(message, bit):
    return (int.from_bytes(message, "big") ^ 1 << bit).to_bytes(len(message), "big")


# hellos that the server passes on


@pytest.mark.parametrize("signed", [False, True])
def test_all_silos_derive_the_same(signed):
    """Guards `Handshake.complete`: group secret, transcript, samples, and a secret of each pair."""
    silos = shakes(signed=signed)
    hellos = hellos_of(silos)
    made = {rank: shake.complete(hellos) for rank, shake in silos.items()}
    assert {each.silo for each in made.values()} == {0, 1, 2}
    for what in ("group", "transcript"):
        assert len({getattr(each, what) for each in made.values()}) == 1
        assert len(getattr(made[1], what)) == 32
    for one, two in permutations(made.values(), 2):
        assert one.pairs[two.silo] == two.pairs[one.silo]
        assert one.pairs.keys() == {0, 1, 2} - {one.silo}
    # of what the server has seen, without the file, the group's secret does not follow
    seen = key_agreement.LABEL + b"group" + made[1].transcript
    assert made[1].group == naive.hkdf(FILE, seen)
    pairs = {pair for each in made.values() for pair in each.pairs.values()}
    assert len(pairs | {made[1].group, made[1].transcript, FILE}) == 6
    assert all(each.samples == {0: 100.0, 1: 50.5, 2: 7.0} for each in made.values())
    assert all(each.exchange is None for each in made.values())
    # and they can seal and open by them
    first, rounds = {"w": torch.ones(2, 2)}, [Rounds(each) for each in made.values()]
    for silo in rounds:
        silo.begin(first)
    opened = one_round(rounds, [{"w": torch.full((2, 2), k)} for k in (1.5, 2.0, 3.0)])
    assert [bits_of(one.state) for one in opened] == [bits_of(opened[0].state)] * 3


def test_every_start_has_other_secrets():
    """Guards the private key and the nonce: nothing of a job can be made to come again."""
    seen, nonces = set(), set()
    for _ in range(5):
        silos = shakes()
        made = silos[1].complete(hellos_of(silos))
        seen |= {made.group, made.transcript, *made.pairs.values()}
        nonces |= {hello[32:64] for hello in hellos_of(silos).values()}
    assert len(seen) == 20
    assert len(nonces) == 5 * len(silos)


def test_one_start_has_one_hello():
    """Guards the nonce of the samples' cipher: a hello that is made twice is the same twice."""
    shake = shakes(signed=True)[1]
    assert shake.hello == shake.hello
    assert len(shake.hello) == shake.length
    for file, signed, length in [
        (b"", False, 64),
        (FILE, False, 100),
        (b"", True, 128),
        (FILE, True, 164),
    ]:
        shake = shakes(file=file, signed=signed)[1]
        assert len(shake.hello) == shake.length == length


def test_samples_are_encrypted():
    """Guards the cipher in `Handshake.hello`: the server passes hellos on and reads none."""
    seen = {shakes()[1].hello[64:] for _ in range(20)}
    assert len(seen) == 20
    assert not any(struct.pack(">d", SAMPLES[1]) in each for each in seen)
    silos = shakes()
    assert silos[2].verified(hellos_of(silos))[1] == SAMPLES


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("odd", RANKS)
def test_a_hello_that_was_changed_anywhere_is_refused(odd, signed):
    """Guards the length, the cipher's tag and what it binds, and the signature.

    By every other silo, which names the rank; and by its own silo, whose hello came back changed.
    """
    silos = shakes(signed=signed)
    right = hellos_of(silos)
    size = len(right[odd])
    for bit in range(0, 8 * size, 61):
        hellos = {**right, odd: flipped(right[odd], bit)}
        for rank, shake in silos.items():
            with pytest.raises(HostError, match=f"rank {odd}"):
                shake.complete(hellos)
            assert rank in RANKS
    for wrong in (b"", right[odd][:-1], right[odd] + b"x"):
        with pytest.raises(HostError, match=f"rank {odd} sent {len(wrong)} bytes, not {size}"):
            silos[1].complete({**right, odd: wrong})


def test_an_own_hello_that_came_back_changed_is_refused():
    """Guards the comparison with `hello`, also without a file's secret or a roster."""
    for file, signed in ((b"", False), (FILE, False), (FILE, True)):
        silos, others = shakes(file=file, signed=signed), shakes(file=file, signed=signed)
        hellos = hellos_of(silos)
        for wrong in ({**hellos, 1: others[1].hello}, {2: hellos[2], 3: hellos[3]}):
            with pytest.raises(HostError, match="rank 1: its own hello came back changed"):
                silos[1].complete(wrong)
        # of an earlier start of rank 2: its owner notices, and the others share nothing with it
        stale = {**hellos, 2: others[2].hello}
        made = silos[1].complete(stale)
        with pytest.raises(HostError, match="rank 2: its own hello came back changed"):
            silos[2].complete(stale)
        # and what two others share depends on all hellos
        right = silos[1].complete(hellos)
        assert made.transcript != right.transcript
        assert made.pairs[2] != right.pairs[2]


def test_hellos_in_each_others_place_are_refused():
    """Guards `_place` in what the cipher and the signature bind."""
    for signed in (False, True):
        silos = shakes(signed=signed)
        hellos = hellos_of(silos)
        with pytest.raises(HostError, match="rank 2"):
            silos[1].complete({**hellos, 2: hellos[3], 3: hellos[2]})
        with pytest.raises(HostError, match="rank 4"):
            silos[1].complete({**hellos, 4: hellos[3]})


def test_another_group_key_is_named():
    """Guards the file's secret in the cipher, and in the group's secret."""
    silos = shakes()
    silos[3] = Handshake(3, 7.0, bytes(32))
    for rank, odd in ((1, 3), (2, 3), (3, 1)):
        with pytest.raises(HostError, match=f"rank {odd} has another keylock.group_key, or some"):
            silos[rank].complete(hellos_of(silos))


LOW_ORDER = [
    "00" * 32,
    "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ec" + "ff" * 30 + "7f",
    "ed" + "ff" * 30 + "7f",
    "ee" + "ff" * 30 + "7f",
]
"""Public keys with which anyone can compute what is shared (RFC 7748, section 6.1)."""


@pytest.mark.parametrize("key", LOW_ORDER)
def test_a_public_key_of_low_order_is_named(key):
    """Guards the refusal in `Handshake.pair`."""
    silos = shakes(file=b"")
    hellos = hellos_of(silos)
    hellos[2] = bytes.fromhex(key) + hellos[2][32:]
    with pytest.raises(HostError, match="rank 2 sent a public key that keeps no secret"):
        silos[1].complete(hellos)


# the roster


def test_a_hello_of_another_identity_is_named():
    """Guards `Roster.verify`: the file's secret does not help who has not the silo's key."""
    silos = shakes(signed=True)
    thief = Handshake(3, 7.0, FILE, roster(1, {1: public(1)}))  # a silo that answers as rank 3
    thief.roster._private = Ed25519PrivateKey.from_private_bytes(identity(1))
    hellos = {**hellos_of(silos), 3: thief.hello}
    for rank in (1, 2):
        with pytest.raises(HostError, match=r"rank 3 is not who keylock\.roster says"):
            silos[rank].complete(hellos)


def test_a_rank_that_is_not_in_the_roster_is_named():
    """Guards the first lines of `Roster.verify`."""
    silos = shakes(signed=True)
    few = {rank: public(rank) for rank in (1, 2)}
    silos[1].roster = roster(1, few)
    with pytest.raises(HostError, match="it has no key of rank 3, which takes part"):
        silos[1].complete(hellos_of(silos))


def test_an_identity_that_is_not_in_the_roster_is_refused_at_once():
    """Guards `Roster.__init__`."""
    for keys in ({1: public(2)}, {2: public(1)}, {1: "00" * 32}):
        with pytest.raises(ConfigError, match="has for rank 1"):
            Roster(keys, identity(1), rank=1)


def test_unsigned_hellos_do_not_do_for_signed_ones():
    """Guards `Handshake.length`: nobody may leave the signature out."""
    signed, plain = shakes(signed=True), shakes()
    hellos = {**hellos_of(signed), 2: plain[2].hello}
    with pytest.raises(HostError, match="rank 2 sent 100 bytes, not 164"):
        signed[1].complete(hellos)


# over MPI, past the server


class World:
    """As much of MPI as an agreement uses, for ranks that are threads."""

    def __init__(self, size):
        self.size, self.lock, self.boxes = size, Lock(), defaultdict(deque)
        self.on_the_way = lambda _sender, _receiver, message: message
        self.log = []

    def comm(self, rank, ranks=None):
        return Comm(self, rank, ranks or [*range(self.size)])


class Comm:
    def __init__(self, world, rank, ranks):
        self.world, self.rank, self.ranks = world, rank, ranks

    def Get_rank(self):  # noqa: N802  # as mpi4py has it
        return self.ranks.index(self.rank)

    def Get_size(self):  # noqa: N802
        return len(self.ranks)

    def Get_group(self):  # noqa: N802
        return SimpleNamespace(Incl=lambda ranks: ranks)

    def Create_group(self, ranks, tag):  # noqa: N802
        assert tag == mailbox.TAG
        return Comm(self.world, self.rank, [*ranks])

    def box(self, source, receiver):
        return self.world.boxes[tuple(self.ranks), source, receiver]

    def Isend(self, message, dest, tag):  # noqa: N802
        assert tag == mailbox.TAG
        with self.world.lock:
            sent = self.world.on_the_way(self.rank, self.ranks[dest], bytes(message))
            self.world.log.append((self.rank, self.ranks[dest], sent))
            if sent is not None:
                self.box(self.Get_rank(), dest).append(sent)
        return SimpleNamespace(Test=lambda: True)

    def Iprobe(self, source, tag, status):  # noqa: N802
        assert tag == mailbox.TAG
        with self.world.lock:
            box = self.box(source, self.Get_rank())
            status.size = len(box[0]) if box else None
            return bool(box)

    def Recv(self, buffer, source, tag):  # noqa: N802
        assert tag == mailbox.TAG
        with self.world.lock:
            message = self.box(source, self.Get_rank()).popleft()
        assert len(message) <= len(buffer), "MPI ends the job: MPI_ERR_TRUNCATE"
        buffer[: len(message)] = message


class Status:
    size = None

    def Get_count(self, _kind):  # noqa: N802
        return self.size


@pytest.fixture
def world(monkeypatch):
    """A world of a server and three silos, whose threads import this MPI."""
    mpi = SimpleNamespace(Status=Status, BYTE=None)
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=mpi))
    return World(4)


def agreed(world, silos, **more):
    """What each silo has agreed on, or the error that ended it."""

    def tried(rank):
        try:
            return agree(world.comm(rank), silos[rank], **{"wait": 0.5, **more})
        except HostError as error:
            return str(error)

    with ThreadPoolExecutor(len(silos)) as pool:
        return dict(zip(silos, pool.map(tried, silos), strict=True))


@pytest.mark.parametrize("file", [b"", FILE])
@pytest.mark.parametrize("signed", [False, True])
def test_silos_agree_past_the_server(world, file, signed):
    """Guards `agree`: as `complete`, with a fresh group secret; nothing goes to rank 0."""
    made = agreed(world, shakes(file=file, signed=signed), wait=20)
    assert {each.silo for each in made.values()} == {0, 1, 2}
    assert len({each.group for each in made.values()}) == 1
    assert len({each.transcript for each in made.values()}) == 1
    assert all(each.samples == {} for each in made.values())
    for one, two in permutations(made.values(), 2):
        assert one.pairs[two.silo] == two.pairs[one.silo]
    assert {sender for sender, _, _ in world.log} == {1, 2, 3}
    assert 0 not in {receiver for _, receiver, _ in world.log}
    assert not any(made[1].group in message for _, _, message in world.log)
    # and they reach one another afterwards
    with ThreadPoolExecutor(3) as pool:
        told = pool.map(
            lambda one: one.exchange({k: bytes([one.silo, k]) for k in one.pairs}, lambda: None),
            made.values(),
        )
        assert [*told] == [
            {1: bytes([1, 0]), 2: bytes([2, 0])},
            {0: bytes([0, 1]), 2: bytes([2, 1])},
            {0: bytes([0, 2]), 1: bytes([1, 2])},
        ]


def test_the_leader_draws_the_group_secret_for_each_job(world):
    """Guards ``os.urandom``: the file's secret and the transcript alone do not give it."""
    silos = shakes()
    one = agreed(world, silos, wait=20)
    two = agreed(world, silos, wait=20)
    assert one[1].transcript == two[1].transcript
    assert one[1].group != two[1].group


def test_the_file_s_secret_is_part_of_the_group_s(world, monkeypatch):
    """Guards ``group + handshake.file``."""
    monkeypatch.setattr(key_agreement.os, "urandom", lambda count: bytes(count))
    for file in (b"", FILE):
        made = agreed(world, shakes(file=file), wait=20)[1]
        info = key_agreement.LABEL + b"group" + made.transcript
        assert made.group == naive.hkdf(bytes(32) + file, info)


@pytest.mark.parametrize(("sender", "receiver"), [*permutations(RANKS, 2)])
def test_who_stands_between_two_silos_is_noticed(world, sender, receiver):
    """Guards the transcript: in pairs' secrets, and as what the leader's answer is bound to.

    Somebody answers one silo with a key of his own: the leader's answer opens at none whose hellos
    are others, and nobody has agreed with all.
    """
    silos, between = shakes(file=b""), Handshake(sender)

    def replaced(at, to, message):
        of_hello = len(message) == 64
        return between.hello if (at, to) == (sender, receiver) and of_hello else message

    world.on_the_way = replaced
    said = [each for each in agreed(world, silos).values() if isinstance(each, str)]
    assert said
    assert all("rank 1 sent a secret not sealed for the keys" in each for each in said)


def test_a_signed_hello_from_who_stands_between_is_named(world):
    silos = shakes(signed=True)
    between = Handshake(3, 7.0, FILE, roster(1))
    world.on_the_way = lambda at, to, message: (
        between.hello if (at, to) == (3, 2) and len(message) == 164 else message
    )
    assert agreed(world, silos)[2].startswith("rank 3 is not who keylock.roster says")


def test_an_answer_that_was_changed_opens_nowhere(world):
    """Guards the cipher of the leader's answer."""

    def changed(at, to, message):
        return flipped(message, 3) if (at, to) == (1, 2) and len(message) == 60 else message

    world.on_the_way = changed
    made = agreed(world, shakes())
    assert "rank 1 sent a secret not sealed for the keys" in made[2]
    assert made[1].group == made[3].group


def test_who_does_not_answer_or_speaks_otherwise_is_named(world):
    """Guards `Mailbox.exchange`: its time, and the length that it checks before it receives."""
    world.on_the_way = lambda at, _to, message: None if at == 3 else message
    said = agreed(world, shakes())
    assert "rank 3 did not answer within 0.5 seconds" in said[1]
    world.on_the_way = lambda at, _to, message: message[:-1] if at == 2 else message
    world.boxes.clear()
    assert "rank 2 sent 99 bytes, not 100" in agreed(world, shakes())[1]


def test_the_server_cannot_agree(world):
    """Guards the first lines of `agree`."""
    with pytest.raises(HostError, match="rank 0 is the server's, which must not have"):
        agree(world.comm(0), Handshake(0))
    assert world.log == []


def test_a_mailbox_sends_to_one_and_receives_from_another(world):
    mailboxes = [Mailbox(world.comm(rank)) for rank in range(2)]
    assert mailboxes[0].exchange({1: b"to one"}, [], 0, wait=1) == {}
    assert mailboxes[1].exchange({}, [0], 6, wait=1) == {0: b"to one"}


# what a session adds


NAMES = EntryNames("state", "silo", "samples")


def grpc_silo(tmp_path, each):
    """A silo's session over a backend where hellos pass through the server."""
    (tmp_path / "group").write_bytes(bytes(range(32)))
    (tmp_path / "group").chmod(0o600)
    args = SimpleNamespace(
        role="client", rank=1, client_num_in_total=each, client_num_per_round=each, comm_round=2
    )
    defense = keylock({"group_key": str(tmp_path / "group"), "vault": str(tmp_path)})
    session = SiloSession(args, "keylock", defense, Observer(args))
    session.agree([*[None] * 4, {0: 5}])
    session.adopt(nn.Linear(2, 2))
    return session


def test_a_server_that_leaves_silos_out_is_refused(tmp_path):
    """Or of many silos it would let two agree, one of which colludes, and read the other's update.

    Guards the count in `check_hellos`.
    """
    session = grpc_silo(tmp_path, 4)
    others = [Handshake(rank, 5.0, bytes(range(32))) for rank in (2, 3, 4)]
    hellos = [f"{shake.rank}:{shake.hello.hex()}" for shake in (session._handshake, *others)]
    message = {"state": dict(session.model.state_dict()), JOB_NONCE: "0" * 32}
    for some in (hellos[:2], hellos[:3], []):
        with pytest.raises(UpdateRefused, match="hellos"):
            session.admit({**message, HELLOS: ",".join(some)}, NAMES, 0)
    entries = {**message, HELLOS: ",".join(hellos)}
    session.admit(entries, NAMES, 0)
    assert torch.equal(entries["state"]["weight"], session.model.weight)
