"""Compares the silos' views of the job before each round, past the server."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ...errors import UpdateRefused
from ...types import JobSecrets
from .keystream import derive

__all__ = ["Notice", "compare"]

_FORM = struct.Struct(">Q32s32sd")


@dataclass(frozen=True)
class Notice:
    """One silo's view of the job.

    Attributes:
        round: index of the round.
        chain: digest of everything received so far, 32 bytes.
        schema: digest, 32 bytes, of the names, shapes and types to send, and of what silos must
            have in common under noise.
        samples: its weight in the average.

    """

    round: int
    chain: bytes
    schema: bytes
    samples: float

    def packed(self) -> bytes:
        """The notice in bytes.

        Example:
            >>> note = Notice(1, bytes(32), bytes(32), 100.0)
            >>> Notice.unpacked(note.packed()) == note
            True

        """
        return _FORM.pack(self.round, self.chain, self.schema, self.samples)

    @classmethod
    def unpacked(cls, packed: bytes) -> Notice:
        """The inverse of `packed`."""
        return cls(*_FORM.unpack(packed))


def compare(
    own: Notice,
    secrets: JobSecrets,
    *,
    label: str = "notice",
    sending: str = "sends other names, shapes or types",
    meanwhile: Callable[[], None] = lambda: None,
) -> list[float]:
    """Tell every other silo this one's view, and check that all views are the same.

    Each notice is encrypted for its one receiver.

    Args:
        own: this silo's.
        secrets: what the silos have agreed on. Without a channel past the server, silos that differ
            derive different keys, and no average opens.
        label: of the keys: one label has one notice each way in a round.
        sending: what a silo does whose schema differs, in words.
        meanwhile: work for this silo while the notices of others are on their way.

    Returns:
        The samples of all silos, in their order.

    Raises:
        UpdateRefused: naming the silo that differs, and how.

    """
    if secrets.exchange is None:
        said = {**secrets.samples, secrets.silo: own.samples}
        if said[secrets.silo] != secrets.samples.get(secrets.silo, own.samples):
            raise UpdateRefused(
                f"it says that it has {own.samples:g} samples and said "
                f"{secrets.samples[secrets.silo]:g} when the job began"
            )
        return [float(said[silo]) for silo in sorted(said)]
    sealed = {
        silo: _cipher(secrets, silo, label).encrypt(
            _nonce(secrets.silo, silo), own.packed(), secrets.transcript
        )
        for silo in secrets.pairs
    }
    found = {secrets.silo: own}
    for silo, received in secrets.exchange(sealed, meanwhile).items():
        try:
            opened = _cipher(secrets, silo, label).decrypt(
                _nonce(silo, secrets.silo), received, secrets.transcript
            )
        except InvalidTag:
            raise UpdateRefused(
                f"silo {silo} is in another round than this one, or in another job: it was started "
                "again, or the server has sent them different messages"
            ) from None
        found[silo] = Notice.unpacked(opened)
    for silo, notice in sorted(found.items()):
        for what, same in {
            "is in another round": notice.round == own.round,
            "has received another model": notice.chain == own.chain,
            sending: notice.schema == own.schema,
        }.items():
            if not same:
                raise UpdateRefused(f"silo {silo} {what} than silo {secrets.silo}; nothing is sent")
    return [found[silo].samples for silo in sorted(found)]


def _cipher(secrets: JobSecrets, silo: int, label: str) -> ChaCha20Poly1305:
    # secrets change with every round, so a key encrypts one notice each way
    return ChaCha20Poly1305(derive(secrets.pairs[silo], label, secrets.transcript))


def _nonce(sender: int, receiver: int) -> bytes:
    return struct.pack(">IQ", 0, int(sender > receiver))
