"""Lets the silos of a job agree on fresh secrets that its server does not have.

Over MPI silos send hellos directly, past the server; over another backend the server passes them
on. A server, or anyone who controls the network, could stand between silos and answer for each. A
roster of the silos' public keys prevents that.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ..errors import HostError
from ..locks.entropy import hkdf
from ..locks.group_key import group_secret
from ..types import Credentials, JobSecrets
from .mailbox import Mailbox, exchange_among, misfit
from .roster import SIGNATURE, Roster

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["Handshake", "agree"]

SECRET = KEY = 32
"""Bytes of a secret, and of a public key of X25519 (RFC 7748)."""
NONCE = 12
SEALED_SAMPLES = NONCE + 8 + 16
"""Bytes of a silo's samples, encrypted under the file's secret, with nonce and tag."""
ANSWER = NONCE + SECRET + 16
"""Bytes of the leader's answer: a nonce, and the group's secret, encrypted, with its tag."""
LABEL = b"fedml-keylock agreement 2"


@dataclass
class Handshake:
    """One silo's side of the agreement: its hello, and what it derives from all hellos.

    Keys are used once: the private key and the nonce are drawn when a process starts.

    Attributes:
        rank: of this silo.
        samples: how many samples it has.
        file: the secret of `keylock.group_key`; empty without one.
        roster: signs and verifies hellos; None without one.

    """

    rank: int
    samples: float = 0.0
    file: bytes = field(default=b"", repr=False)
    roster: Roster | None = None
    _private: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate, repr=False)
    _nonce: bytes = field(default_factory=lambda: os.urandom(SECRET))

    @classmethod
    def of(cls, credentials: Credentials, rank: int, samples: float) -> Handshake:
        """The handshake with the files that a silo's configuration names.

        Raises:
            ConfigError: a file is invalid.
            VaultError: a file is missing, or others may read it.

        """
        key, roster = credentials.group_key, None
        if credentials.roster is not None:
            roster = Roster.load(credentials.roster, credentials.identity or "", rank=rank)
        return cls(rank, samples, b"" if key is None else group_secret(key), roster)

    @property
    def hello(self) -> bytes:
        """The message to all other silos: public key, nonce, encrypted samples, signature."""
        own = self._private.public_key().public_bytes_raw() + self._nonce
        if self.file:
            # derived, so that making the hello twice gives the same bytes
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
        """Check all hellos; return their transcript, 32 bytes, and the samples in them.

        Raises:
            HostError: naming the rank whose hello is not its own.

        """
        samples: dict[int, float] = {}
        for rank, hello in sorted(hellos.items()):
            if len(hello) != self.length:
                raise misfit(rank, f"sent {len(hello)} bytes, not {self.length}")
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
                f"rank {self.rank}: its own hello came back changed: the server, or somebody on "
                "the network, answers in its name; nothing was sent"
            )
        listed = b"".join(_place(rank) + hello for rank, hello in sorted(hellos.items()))
        return hashlib.sha256(LABEL + listed).digest(), samples

    def pair(self, rank: int, hello: bytes, transcript: bytes) -> bytes:
        """The secret, 32 bytes, that only this silo and another one can derive.

        Raises:
            HostError: with that rank's public key anyone could derive it.

        """
        try:
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(hello[:KEY]))
        except ValueError:
            raise misfit(rank, "sent a public key that keeps no secret") from None
        low, high = sorted((self.rank, rank))
        return _derive(shared, b"pair" + _place(low) + _place(high) + transcript)

    def complete(self, hellos: Mapping[int, bytes]) -> JobSecrets:
        """The secrets of silos that reach one another only by the server, from the file's secret.

        Args:
            hellos: of all silos, including this one, by rank.

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
    comm: MPI.Intracomm,
    handshake: Handshake,
    *,
    server: int = 0,
    wait: float = 120.0,
    greeting: bytes = b"",
) -> JobSecrets:
    """Agree with the other silos on secrets. Every silo calls it; the server does not.

    Every silo sends every other one its hello. The leader, the lowest rank, draws the group's
    secret and sends it to each other silo, encrypted for the two. The encryption binds all hellos:
    it cannot be opened by a silo that received other hellos than the leader.

    Call it before FedML receives messages: FedML would take hellos and answers for its own.

    Args:
        comm: the communicator of all ranks. All but the server's are silos, in their order.
        handshake: this silo's.
        server: the server's rank.
        wait: seconds to wait for the other silos.
        greeting: prefix of hellos: a message that a rank without the plugin ignores.

    Raises:
        HostError: a silo did not answer in time, or sent something unknown to this protocol; or
            this rank is the server's.

    """
    own = comm.Get_rank()
    if own == server:
        raise HostError(f"rank {own} is the server's, which must not have the silos' secret")
    silos = [rank for rank in range(comm.Get_size()) if rank != server]
    leader, others = silos[0], [rank for rank in silos if rank != own]
    mailbox, hello = Mailbox(comm), handshake.hello
    length = len(greeting) + handshake.length
    received = mailbox.exchange(dict.fromkeys(others, greeting + hello), others, length, wait=wait)
    hellos = {own: hello} | {rank: message[len(greeting) :] for rank, message in received.items()}
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
            raise misfit(
                leader, "sent a secret not sealed for the keys that this rank has"
            ) from None
    place = {rank: silo for silo, rank in enumerate(silos)}
    return JobSecrets(
        _derive(group + handshake.file, b"group" + transcript),
        place[own],
        {place[rank]: secret for rank, secret in pairs.items()},
        {},
        transcript,
        exchange_among(comm, silos),
    )


def _derive(secret: bytes, info: bytes) -> bytes:
    """Derive 32 bytes from a secret for one purpose."""
    return hkdf(secret, LABEL + info)


def _place(rank: int) -> bytes:
    return rank.to_bytes(4, "big")
