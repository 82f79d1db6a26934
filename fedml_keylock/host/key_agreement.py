"""Key agreement: the silos of an MPI job agree on fresh secrets, which its server does not have.

They stay secret from an honest-but-curious server, and from whoever reads the network. Someone who
controls the network actively could stand between the silos and answer for each: against that, name
a file in keylock.group_key. A colluding silo has the common secret itself. Pairwise secrets then
keep a silo's update from the server, if there is a third silo and the colluding one follows the
protocol.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import ConfigError, HostError
from ..types import Defense, JobSecrets

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    from mpi4py import MPI

__all__ = ["agree", "check_channel", "share_secrets", "takes_secrets"]

TAG = 28_411
"""Of every message here: FedML's own have 0, and every MPI allows tags up to 32767."""
SECRET = 32
KEY = 32
"""Bytes of a public key of X25519."""
HELLO = KEY + 8
"""Bytes of a silo's first message: its public key, and its number of samples."""
NONCE = 12
ANSWER = NONCE + SECRET + 16
"""Bytes of the leader's answer: a nonce, and the common secret sealed, with its tag."""
LABEL = b"fedml-keylock agreed secret 1"
PAUSE = 0.001
"""Seconds between two looks: MPI's own waiting takes a whole core."""
UNMASKED = "updates are not masked"


def takes_secrets(defense: Defense | None) -> bool:
    """Whether silos agree on secrets for a defense: it has a `share` of its own.

    Example:
        >>> takes_secrets(None)
        False

    """
    return defense is not None and type(defense).share is not Defense.share


def check_channel(defense: Defense, comm: MPI.Comm | None) -> None:
    """Check that silos can agree on the secrets that a defense needs.

    Raises:
        ConfigError: they cannot talk to one another: over another backend than MPI there is None.

    """
    if defense.needs_secret and comm is None:
        raise ConfigError(
            "keylock.group_key: without MPI silos cannot agree on a secret by themselves; name "
            "an owner-only file with one that all have: (umask 077; openssl rand -out FILE 32)"
        )


def share_secrets(defense: Defense, comm: MPI.Comm | None, *, samples: int, masked: bool) -> str:
    """In a silo: agree with the other silos, and give the defense what was agreed on.

    Args:
        defense: the job's, which takes secrets.
        comm: the communicator of all ranks; None over another backend than MPI.
        samples: how many this silo has; 0 where it serves others in turn.
        masked: whether pairwise masks hide updates, where there is more than one silo.

    Returns:
        What was agreed on, for the log.

    Raises:
        HostError: the silos did not agree, or one that masks its updates has no samples.

    """
    if comm is None:
        return f"{UNMASKED}: over this backend silos cannot agree on masks"
    secrets = agree(comm, samples=samples)
    if not (masked and secrets.pairs):
        defense.share(JobSecrets(secrets.group))
        return f"the silos have agreed on a secret; {UNMASKED}"
    empty = [silo for silo, number in sorted(secrets.samples.items()) if not number]
    if empty:
        raise HostError(
            f"rank {empty[0] + 1} (silo {empty[0]}) has no samples by the job's dataset, so that "
            "masks would not cancel: give each silo's number (the dataset's fifth part), or set "
            "keylock: {mask: false}"
        )
    defense.share(secrets)
    return "the silos have agreed on a secret; updates are masked"


def agree(comm: MPI.Comm, *, samples: int = 0, server: int = 0, wait: float = 120.0) -> JobSecrets:
    """Agree with the other silos on secrets. Every silo calls it, and the server does not.

    Every silo sends every other one a public key. The lowest, the leader, then draws the common
    secret, and sends it to each other one, sealed for the two. The seal binds all that the silos
    have sent: it does not open where anything else arrived than at the leader. Keys serve once, and
    nobody keeps them; of what they were for, the vault keeps the pairs' secrets and the job's key.

    Call it before FedML receives: it would read the keys and answers as messages of its own.

    Args:
        comm: the communicator of all ranks. All but the server's are silos, in their order.
        samples: how many samples this silo has, below 2**64. Everybody can read it.
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
    silo_of = {rank: silo for silo, rank in enumerate(silos)}
    if not others:
        return JobSecrets(os.urandom(SECRET), samples={silo_of[own]: samples})
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    private = X25519PrivateKey.generate()
    hello = private.public_key().public_bytes_raw() + samples.to_bytes(8, "big")
    mailbox = _Mailbox(comm, wait)
    hellos = {own: hello} | mailbox.exchange(dict.fromkeys(others, hello), others, HELLO)
    keys = {rank: message[:KEY] for rank, message in hellos.items()}
    derived = {rank: _derive(private, own, rank, keys) for rank in others}
    bound = b"".join(hellos[rank] for rank in silos)
    if own == leader:
        group, answers = os.urandom(SECRET), {}
        for rank, (cipher, _) in derived.items():
            nonce = os.urandom(NONCE)
            answers[rank] = nonce + cipher.encrypt(nonce, group, bound)
        mailbox.exchange(answers, [], ANSWER)
    else:
        answer = mailbox.exchange({}, [leader], ANSWER)[leader]
        try:
            group = derived[leader][0].decrypt(answer[:NONCE], answer[NONCE:], bound)
        except InvalidTag:
            raise _refused(
                leader, "sent a secret not sealed for the keys that this rank has"
            ) from None
    return JobSecrets(
        group,
        silo_of[own],
        {silo_of[rank]: secret for rank, (_, secret) in derived.items()},
        {silo_of[rank]: int.from_bytes(message[KEY:], "big") for rank, message in hellos.items()},
    )


class _Mailbox:
    """Messages to and from the other silos, until the wait is over."""

    def __init__(self, comm: MPI.Comm, wait: float) -> None:
        self._comm = comm
        self._wait = wait
        self._end = time.monotonic() + wait

    def exchange(
        self, messages: Mapping[int, bytes], senders: Collection[int], length: int
    ) -> dict[int, bytes]:
        """Send each rank its message, and receive one of so many bytes from each sender.

        It checks a message's length before it receives it, and never waits in a call that only
        another rank could end.

        Raises:
            HostError: a rank did not receive or send its message in time, or sent another length.

        """
        from mpi4py import MPI

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
            if time.monotonic() >= self._end:
                raise HostError(
                    f"the silos share no secret: {_named(left)} did not answer within "
                    f"{self._wait:g} seconds. Start every rank with `python -m fedml_keylock` and "
                    "the same YAML, or name a file in keylock.group_key"
                )
            time.sleep(PAUSE)
        return received


def _derive(
    private: X25519PrivateKey, own: int, rank: int, keys: Mapping[int, bytes]
) -> tuple[ChaCha20Poly1305, bytes]:
    """A cipher and a secret that only this rank and another one can derive.

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
