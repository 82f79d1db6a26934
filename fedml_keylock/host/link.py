"""Tags messages between server and silos, so that changes on the network are noticed."""

from __future__ import annotations

import hmac
import struct
import time

from ..errors import ConfigError, UpdateRefused
from ..locks.entropy import hkdf
from ..locks.group_key import group_secret
from ..types import Credentials

__all__ = ["Link"]

_HEAD = struct.Struct(">IIQ")
"""Sender, receiver, and the message's number."""
_TAG = 32


class Link:
    """One rank's side: tags what it sends, and checks what it receives before anything reads it.

    A message ends in its sender, receiver, a number that only grows, and an HMAC of everything. A
    message of an earlier job may be replayed to a restarted process. The silos' hellos have changed
    by then, so this only ends the job.

    Args:
        secret: shared by server and silos.
        rank: of this process.

    Example:
        >>> server, silo = Link(bytes(32), 0), Link(bytes(32), 1)
        >>> silo.check(server.protect(b"model", 1))
        (b'model', 0)

    """

    def __init__(self, secret: bytes, rank: int) -> None:
        self._key, self._rank = hkdf(secret, b"fedml-keylock link 1"), rank
        self._sent = 0
        self._received: dict[int, int] = {}

    @classmethod
    def of(cls, credentials: Credentials, rank: int, *, is_server: bool) -> Link | None:
        """The link with the configured secret; None without one.

        Raises:
            ConfigError: the file is invalid, or holds the silos' own secret.
            VaultError: the file is missing, or others may read it.

        """
        if credentials.link_key is None:
            return None
        secret, own = group_secret(credentials.link_key, name="link_key"), credentials.group_key
        if own is not None and not is_server and group_secret(own) == secret:
            raise ConfigError(
                "keylock.link_key: it is the silos' group_key, which the server must not have: "
                "make another one"
            )
        return cls(secret, rank)

    def protect(self, message: bytes, receiver: int) -> bytes:
        """Add the tag to a message."""
        self._sent = max(self._sent + 1, time.time_ns())
        head = _HEAD.pack(self._rank, receiver, self._sent)
        return b"".join((message, head, self._tag(message, head)))

    def check(self, received: bytes) -> tuple[bytes, int]:
        """Check a message; return it with the rank that sent it.

        Raises:
            UpdateRefused: it was changed on the way, is not for this rank, or is a duplicate.

        """
        behind = _HEAD.size + _TAG
        message, head, tag = received[:-behind], received[-behind:-_TAG], received[-_TAG:]
        if not hmac.compare_digest(tag, self._tag(message, head)):
            raise UpdateRefused(
                "a message arrived without the tag of keylock.link_key: it was changed on the "
                "network, or its sender has another link_key or none"
            )
        sender, receiver, number = _HEAD.unpack(head)
        if receiver != self._rank or number <= self._received.get(sender, 0):
            raise UpdateRefused(
                f"a message of rank {sender} to rank {receiver} arrived again, or where it "
                "does not belong: somebody on the network resends messages"
            )
        self._received[sender] = number
        return message, sender

    def _tag(self, message: bytes, head: bytes) -> bytes:
        made = hmac.new(self._key, head, "sha256")
        made.update(message)
        return made.digest()
