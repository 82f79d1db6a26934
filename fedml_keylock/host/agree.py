"""Fresh secrets that the silos of an MPI job share and its server does not have, without a file.

They stay secret from a server that follows the protocol, and from whoever reads the network.
Someone who controls the network actively could stand between the silos and answer for each, and a
silo that colludes has the common secret itself. Against the first, name a file in
keylock.group_key. Against the second, pair secrets are what keeps a silo's update from a server
that colludes with another one, if there is a third and the one that colludes follows the protocol.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import HostError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    from mpi4py import MPI

__all__ = ["Agreed", "agree"]

TAG = 28_411
"""Of every message here: FedML's own have 0, and every MPI allows tags up to 32767."""
SECRET = 32
KEY = 32
"""Bytes of a public key of X25519."""
HELLO = KEY + 8
"""Bytes of a silo's first message: its public key, and its number."""
NONCE = 12
ANSWER = NONCE + SECRET + 16
"""Bytes of the leader's answer: a nonce, and the common secret sealed, with its tag."""
LABEL = b"fedml-keylock agreed secret 1"
PAUSE = 0.001
"""Seconds between two looks: MPI's own waiting takes a whole core."""


@dataclass(frozen=True)
class Agreed:
    """What the silos of a job share.

    Attributes:
        secret: 32 bytes, the same for all silos.
        pairs: by the rank of each other silo, 32 bytes that only these two have.
        numbers: by rank, what every silo has told the others of itself. Everybody can read it.

    """

    secret: bytes = field(repr=False)
    pairs: Mapping[int, bytes] = field(repr=False)
    numbers: Mapping[int, int]


def agree(comm: MPI.Comm, *, number: int = 0, server: int = 0, wait: float = 120.0) -> Agreed:
    """Agree with the other silos on secrets. Every silo calls it, and the server does not.

    Every silo sends every other one a public key. The lowest, the leader, then draws the common
    secret, and sends it to each other one, sealed for the two and bound to all that the silos have
    sent: it does not open where anything else came than to the leader. Keys serve once, and nobody
    keeps them; of what they were for, the vault keeps the pairs' secrets and the job's key.

    Call it before FedML receives: it would take the keys and answers for messages of its own.

    Args:
        comm: the communicator of all ranks. All but the server's are silos.
        number: what this silo tells the others, below 2**64.
        server: the server's rank.
        wait: seconds to wait for the other silos.

    Raises:
        HostError: a silo was not heard of in time, or sent what this protocol does not know; or
            this rank is the server's.

    """
    own = comm.Get_rank()
    if own == server:
        raise HostError(f"rank {own} is the server's, which must not have the silos' secret")
    silos = [rank for rank in range(comm.Get_size()) if rank != server]
    leader, others = silos[0], [rank for rank in silos if rank != own]
    if not others:
        return Agreed(os.urandom(SECRET), {}, {own: number})
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    private = X25519PrivateKey.generate()
    hello = private.public_key().public_bytes_raw() + number.to_bytes(8, "big")
    post = _Post(comm, wait)
    said = {own: hello} | post.exchange(dict.fromkeys(others, hello), others, HELLO)
    keys = {rank: message[:KEY] for rank, message in said.items()}
    numbers = {rank: int.from_bytes(message[KEY:], "big") for rank, message in said.items()}
    derived = {rank: _derive(private, own, rank, keys) for rank in others}
    pairs = {rank: secret for rank, (_, secret) in derived.items()}
    bound = b"".join(said[rank] for rank in silos)
    if own == leader:
        secret, answers = os.urandom(SECRET), {}
        for rank, (cipher, _) in derived.items():
            nonce = os.urandom(NONCE)
            answers[rank] = nonce + cipher.encrypt(nonce, secret, bound)
        post.exchange(answers, [], ANSWER)
        return Agreed(secret, pairs, numbers)

    answer = post.exchange({}, [leader], ANSWER)[leader]
    cipher, _ = derived[leader]
    try:
        secret = cipher.decrypt(answer[:NONCE], answer[NONCE:], bound)
    except InvalidTag:
        raise _refused(leader, "sent a secret not sealed for the keys that this rank has") from None
    return Agreed(secret, pairs, numbers)


class _Post:
    """Messages to and from the other silos, for as long as they are waited for."""

    def __init__(self, comm: MPI.Comm, wait: float) -> None:
        self._comm = comm
        self._wait = wait
        self._end = time.monotonic() + wait

    def exchange(
        self, messages: Mapping[int, bytes], senders: Collection[int], length: int
    ) -> dict[int, bytes]:
        """Send each rank its message, and take in one of so many bytes from each sender.

        Nothing is taken in before its length is known, and no wait is one that only another rank
        could end.

        Raises:
            HostError: a rank did not take in or send its message in time, or sent another length.

        """
        from mpi4py import MPI

        found: dict[int, bytes] = {}
        status = MPI.Status()
        sending = {
            rank: self._comm.Isend(bytearray(message), dest=rank, tag=TAG)
            for rank, message in messages.items()
        }

        def done(rank: int) -> bool:
            if rank in senders and rank not in found:
                if not self._comm.Iprobe(source=rank, tag=TAG, status=status):
                    return False
                size = status.Get_count(MPI.BYTE)
                if size != length:
                    raise _refused(rank, f"sent {size} bytes, not {length}")
                buffer = bytearray(length)
                self._comm.Recv(buffer, source=rank, tag=TAG)
                found[rank] = bytes(buffer)
            return rank not in sending or sending[rank].Test()

        left = sorted({*messages, *senders})
        while left := [rank for rank in left if not done(rank)]:
            if time.monotonic() >= self._end:
                raise HostError(
                    f"the silos share no secret: {_named(left)} did not answer within "
                    f"{self._wait:g} seconds. Start every rank with `python -m fedml_keylock` and "
                    "the same YAML, or name a file in keylock.group_key"
                )
            time.sleep(PAUSE)
        return found


def _derive(
    private: X25519PrivateKey, own: int, rank: int, keys: Mapping[int, bytes]
) -> tuple[ChaCha20Poly1305, bytes]:
    """A cipher and a secret that only this rank and another one can make.

    Raises:
        HostError: with that rank's public key anyone could.

    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(keys[rank]))
    except ValueError:
        raise _refused(rank, "sent a public key that keeps no secret") from None
    low, high = sorted((own, rank))
    info = LABEL + keys[low] + keys[high] + low.to_bytes(4, "big") + high.to_bytes(4, "big")
    derived = HKDF(algorithm=SHA256(), length=32 + SECRET, salt=None, info=info).derive(shared)
    return ChaCha20Poly1305(derived[:32]), derived[32:]


def _refused(rank: int, what: str) -> HostError:
    return HostError(
        f"the silos share no secret: rank {rank} {what}. Run the same fedml-keylock on every rank, "
        "or name a file in keylock.group_key"
    )


def _named(ranks: Sequence[int]) -> str:
    return f"rank{'s'[: len(ranks) != 1]} {', '.join(map(str, ranks))}"
