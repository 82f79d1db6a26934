"""Key agreement: the silos of a job agree on fresh secrets, which its server does not have.

Over MPI hellos go past the server, rank by rank; over another backend the server passes them on.
Who controls the network, or is that server, could stand between silos and answer for each: against
that there is a roster of the silos' public keys.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ..errors import HostError
from ..types import JobSecrets
from .roster import SIGNATURE, Roster

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["Handshake", "agree"]

TAG = 28_411
"""Of every message here: FedML's own have 0, and every MPI allows tags up to 32767."""
SECRET = KEY = 32
"""Bytes of a secret, and of a public key of X25519 (RFC 7748)."""
NONCE = 12
SEALED_SAMPLES = NONCE + 8 + 16
"""Bytes of a silo's samples, encrypted under the file's secret, with a nonce and a tag."""
ANSWER = NONCE + SECRET + 16
"""Bytes of the leader's answer: a nonce, and the group's secret sealed, with its tag."""
LABEL = b"fedml-keylock agreement 2"
PAUSE = 0.001
"""Seconds between two looks: MPI's own waiting takes a whole core."""


@dataclass
class Handshake:
    """One silo's side of an agreement: its hello, and what it derives from all hellos.

    Keys serve once: the private key and the nonce are drawn when a process starts.

    Attributes:
        rank: of this silo.
        samples: how many it has.
        file: the secret of `keylock.group_key`; empty without one.
        roster: signs and verifies hellos; None without one.

    """

    rank: int
    samples: float = 0.0
    file: bytes = field(default=b"", repr=False)
    roster: Roster | None = None
    _private: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate, repr=False)
    _nonce: bytes = field(default_factory=lambda: os.urandom(SECRET))

    @property
    def hello(self) -> bytes:
        """What this silo tells all others: public key, nonce, samples if encrypted, signature."""
        own = self._private.public_key().public_bytes_raw() + self._nonce
        if self.file:
            # the same nonce would be used again were the hello made twice
            nonce = hashlib.sha256(LABEL + own).digest()[:NONCE]
            packed = struct.pack(">d", self.samples)
            own += nonce + self._file_cipher().encrypt(nonce, packed, _place(self.rank) + own)
        if self.roster is not None:
            own += self.roster.sign(_place(self.rank) + own)
        return own

    @property
    def length(self) -> int:
        """Bytes of a hello."""
        sealed = SEALED_SAMPLES if self.file else 0
        return 2 * SECRET + sealed + (SIGNATURE if self.roster else 0)

    def verified(self, hellos: Mapping[int, bytes]) -> tuple[bytes, dict[int, float]]:
        """Check all hellos; return their transcript, 32 bytes, and the samples that they tell.

        Raises:
            HostError: naming the rank whose hello is not its own.

        """
        samples: dict[int, float] = {}
        for rank, hello in sorted(hellos.items()):
            if len(hello) != self.length:
                raise _refused(rank, f"sent {len(hello)} bytes, not {self.length}")
            body = hello
            if self.roster is not None:
                body, signature = hello[:-SIGNATURE], hello[-SIGNATURE:]
                self.roster.verify(_place(rank) + body, signature, rank=rank)
            if self.file:
                nonce, sealed = body[2 * SECRET :][:NONCE], body[2 * SECRET + NONCE :]
                try:
                    packed = self._file_cipher().decrypt(
                        nonce, sealed, _place(rank) + body[: 2 * SECRET]
                    )
                except InvalidTag:
                    raise HostError(
                        f"rank {rank} has another keylock.group_key, or somebody answers in its "
                        "name; nothing was sent"
                    ) from None
                samples[rank] = struct.unpack(">d", packed)[0]
        if hellos.get(self.rank) != self.hello:
            raise HostError(
                f"rank {self.rank}: its own hello came back changed: the server, or who stands "
                "between, answers in its name; nothing was sent"
            )
        listed = b"".join(_place(rank) + hello for rank, hello in sorted(hellos.items()))
        return hashlib.sha256(LABEL + listed).digest(), samples

    def pair(self, rank: int, hello: bytes, transcript: bytes) -> bytes:
        """The secret that only this silo and another one can derive, 32 bytes.

        Raises:
            HostError: with that rank's public key anyone could.

        """
        try:
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(hello[:KEY]))
        except ValueError:
            raise _refused(rank, "sent a public key that keeps no secret") from None
        low, high = sorted((self.rank, rank))
        return _derive(shared, b"pair" + _place(low) + _place(high) + transcript)

    def complete(self, hellos: Mapping[int, bytes]) -> JobSecrets:
        """What all silos have where nothing but the server reaches them: of the file's secret.

        Args:
            hellos: of all silos, this one included, by rank.

        Raises:
            HostError: naming the rank whose hello is not its own.

        """
        transcript, samples = self.verified(hellos)
        pairs = {
            rank - 1: self.pair(rank, hello, transcript)
            for rank, hello in hellos.items()
            if rank != self.rank
        }
        group = _derive(self.file, b"group" + transcript)
        return JobSecrets(
            group,
            self.rank - 1,
            pairs,
            {rank - 1: number for rank, number in samples.items()},
            transcript,
        )

    def _file_cipher(self) -> ChaCha20Poly1305:
        return ChaCha20Poly1305(_derive(self.file, b"hello"))


def agree(
    comm: MPI.Intracomm, handshake: Handshake, *, server: int = 0, wait: float = 120.0
) -> JobSecrets:
    """Agree with the other silos on secrets. Every silo calls it, and the server does not.

    Every silo sends every other one its hello. The lowest, the leader, then draws the group's
    secret, and sends it to each other one, sealed for the two. The seal binds all hellos: it does
    not open where anything else arrived than at the leader.

    Call it before FedML receives: it would read the hellos and answers as messages of its own.

    Args:
        comm: the communicator of all ranks. All but the server's are silos, in their order.
        handshake: this silo's.
        server: the server's rank.
        wait: seconds to wait for the other silos.

    Raises:
        HostError: a silo did not answer in time, or sent what this protocol does not know; or this
            rank is the server's.

    """
    own = comm.Get_rank()
    if own == server:
        raise HostError(f"rank {own} is the server's, which must not have the silos' secret")
    silos = [rank for rank in range(comm.Get_size()) if rank != server]
    leader, others = silos[0], [rank for rank in silos if rank != own]
    mailbox, hello = Mailbox(comm), handshake.hello
    came = mailbox.exchange(dict.fromkeys(others, hello), others, handshake.length, wait=wait)
    hellos = {own: hello} | came
    transcript, _ = handshake.verified(hellos)
    pairs = {rank: handshake.pair(rank, hellos[rank], transcript) for rank in others}
    ciphers = {rank: ChaCha20Poly1305(_derive(pairs[rank], b"answer")) for rank in others}
    if own == leader:
        group, answers = os.urandom(SECRET), {}
        for rank, cipher in ciphers.items():
            nonce = os.urandom(NONCE)
            answers[rank] = nonce + cipher.encrypt(nonce, group, transcript)
        mailbox.exchange(answers, [], ANSWER, wait=wait)
    else:
        answer = mailbox.exchange({}, [leader], ANSWER, wait=wait)[leader]
        try:
            group = ciphers[leader].decrypt(answer[:NONCE], answer[NONCE:], transcript)
        except InvalidTag:
            raise _refused(
                leader, "sent a secret not sealed for the keys that this rank has"
            ) from None
    place = {rank: silo for silo, rank in enumerate(silos)}
    return JobSecrets(
        _derive(group + handshake.file, b"group" + transcript),
        place[own],
        {place[rank]: secret for rank, secret in pairs.items()},
        {},
        transcript,
        _exchange_among(comm, silos),
    )


def _exchange_among(
    comm: MPI.Intracomm, silos: Sequence[int]
) -> Callable[[Mapping[int, bytes]], Mapping[int, bytes]]:
    """A way to the other silos that FedML's receiver does not look into."""
    group = comm.Get_group().Incl(silos)
    # only the silos take part in making it, and messages in it are no messages of FedML's
    mailbox = Mailbox(comm.Create_group(group, TAG))

    def exchange(messages: Mapping[int, bytes]) -> Mapping[int, bytes]:
        length = len(next(iter(messages.values()), b""))
        return mailbox.exchange(messages, [*messages], length, wait=None)

    return exchange


class Mailbox:
    """Messages to and from other ranks, which never waits in a call that only they could end.

    Args:
        comm: a communicator.

    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm

    def exchange(
        self,
        messages: Mapping[int, bytes],
        senders: Collection[int],
        length: int,
        *,
        wait: float | None,
    ) -> dict[int, bytes]:
        """Send each rank its message, and receive one of so many bytes from each sender.

        It checks a message's length before it receives it.

        Args:
            messages: by rank.
            senders: ranks to receive from.
            length: bytes of what they send.
            wait: seconds; None to wait as long as they take.

        Raises:
            HostError: a rank did not receive or send its message in time, or sent another length.

        """
        from mpi4py import MPI

        end = None if wait is None else time.monotonic() + wait
        received: dict[int, bytes] = {}
        status = MPI.Status()
        sending = {
            rank: self._comm.Isend(bytearray(message), dest=rank, tag=TAG)
            for rank, message in messages.items()
        }

        def done(rank: int) -> bool:
            if rank in senders and rank not in received:
                if not self._comm.Iprobe(source=rank, tag=TAG, status=status):
                    return False
                size = status.Get_count(MPI.BYTE)
                if size != length:
                    raise _refused(rank, f"sent {size} bytes, not {length}")
                buffer = bytearray(length)
                self._comm.Recv(buffer, source=rank, tag=TAG)
                received[rank] = bytes(buffer)
            return rank not in sending or bool(sending[rank].Test())

        left = sorted({*messages, *senders})
        while left := [rank for rank in left if not done(rank)]:
            if end is not None and time.monotonic() >= end:
                raise HostError(
                    f"the silos share no secret: {_named(left)} did not answer within {wait:g} "
                    "seconds. Start every rank with `python -m fedml_keylock` and the same YAML"
                )
            time.sleep(PAUSE)
        return received


def _derive(secret: bytes, info: bytes) -> bytes:
    """32 bytes of a secret for one purpose."""
    return HKDF(algorithm=SHA256(), length=SECRET, salt=None, info=LABEL + info).derive(secret)


def _place(rank: int) -> bytes:
    return rank.to_bytes(4, "big")


def _refused(rank: int, what: str) -> HostError:
    return HostError(
        f"the silos share no secret: rank {rank} {what}. Run the same fedml-keylock on every rank, "
        "with the same YAML"
    )


def _named(ranks: Sequence[int]) -> str:
    return f"rank{'s'[: len(ranks) != 1]} {', '.join(map(str, ranks))}"
