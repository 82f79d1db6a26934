"""Signs and verifies by the silos' public keys, so that nobody answers in a silo's name."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import yaml
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ..disk import open_private, write_private
from ..errors import ConfigError, HostError, VaultError

__all__ = ["Roster", "add_key", "new_identity", "read_roster"]

SIGNATURE = 64
"""Bytes of a signature of Ed25519 (RFC 8032)."""
_KEY = re.compile("[0-9a-f]{64}")


class Roster:
    """Signs for this silo, and verifies the others.

    Args:
        keys: the public key of Ed25519 in hexadecimal, by rank.
        identity: this rank's private key, 32 bytes.
        rank: of this silo.

    Raises:
        ConfigError: the private key does not belong to the rank.

    Example:
        >>> key = bytes(32)
        >>> public = Ed25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()
        >>> roster = Roster({1: public.hex()}, key, rank=1)
        >>> roster.verify(b"hello", roster.sign(b"hello"), rank=1)

    """

    def __init__(self, keys: Mapping[int, str], identity: bytes, *, rank: int) -> None:
        self._keys = dict(keys)
        self._private = Ed25519PrivateKey.from_private_bytes(identity)
        if self._keys.get(rank) != self._private.public_key().public_bytes_raw().hex():
            raise ConfigError(
                f"keylock.identity: it is not the key that keylock.roster has for rank {rank}: "
                "give each silo its own, or add its public key (fedml-keylock roster add)"
            )

    @classmethod
    def load(cls, roster: Path, identity: str, *, rank: int) -> Roster:
        """Read the silos' roster, and this silo's private key.

        Args:
            roster: see `read_roster`.
            identity: an owner-only file; {rank} in its name stands for the rank.
            rank: of this silo.

        Raises:
            ConfigError: one of the files is invalid.
            VaultError: the private key is missing, or others may read it.

        """
        path = Path(identity.replace("{rank}", str(rank)))
        with open_private(path, what="keylock.identity:", follow=True) as file:
            key = file.read(65)
        try:
            private = bytes.fromhex(key.decode("ascii").strip())
        except ValueError:
            private = b""
        if len(private) != 32:
            raise ConfigError(f"keylock.identity: {path} holds no key: fedml-keylock roster init")
        return cls(read_roster(roster), private, rank=rank)

    def sign(self, message: bytes) -> bytes:
        """Sign as this silo, SIGNATURE bytes."""
        return self._private.sign(message)

    def verify(self, message: bytes, signature: bytes, *, rank: int) -> None:
        """Check another silo's signature.

        Raises:
            HostError: the roster does not have the rank, or the signature is not the rank's.

        """
        key = self._keys.get(rank)
        if key is None:
            raise HostError(f"keylock.roster: it has no key of rank {rank}, which takes part")
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(signature, message)
        except InvalidSignature:
            raise HostError(
                f"rank {rank} is not who keylock.roster says: somebody answers in its name, or its "
                "identity is another one; nothing was sent"
            ) from None


def read_roster(path: Path) -> dict[int, str]:
    """Read a roster's public keys: a YAML file of ``rank: key`` in hexadecimal.

    Raises:
        ConfigError: the file cannot be read, or holds something else.

    """
    try:
        read = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"keylock.roster: {path}: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError):
        raise ConfigError(f"keylock.roster: {path} is not YAML") from None
    keys = read if isinstance(read, Mapping) else {}
    for rank, key in keys.items():
        if not isinstance(rank, int) or isinstance(rank, bool) or not _KEY.fullmatch(str(key)):
            raise ConfigError(
                f"keylock.roster: {path} must hold lines of RANK: KEY, 64 hexadecimal digits, and "
                f"has {rank!r}"
            )
    if not keys:
        raise ConfigError(f"keylock.roster: {path} has no keys: fedml-keylock roster add")
    return {int(rank): str(key) for rank, key in keys.items()}


def new_identity(path: Path) -> str:
    """Write a new private key, for its owner only; return the public key in hexadecimal.

    Raises:
        VaultError: the file cannot be written, or exists already.

    """
    if os.path.lexists(path):
        raise VaultError(f"{path}: is there already, and a key cannot be made again; name another")
    private = Ed25519PrivateKey.generate()
    write_private(path, private.private_bytes_raw().hex().encode(), what="identity:")
    return private.public_key().public_bytes_raw().hex()


def add_key(path: Path, rank: int, key: str) -> None:
    """Add a rank's public key to a roster, which is created if missing.

    Raises:
        ConfigError: the key is invalid or another rank's, the rank has another key, or the file
            cannot be written.

    """
    if not _KEY.fullmatch(key):
        raise ConfigError(f"{key}: no public key: it is 64 hexadecimal digits")
    keys = read_roster(path) if path.exists() else {}
    for other, known in keys.items():
        if known == key and other != rank:
            raise ConfigError(
                f"{path}: rank {other} has this key: each silo needs an identity of its own"
            )
    if keys.get(rank, key) != key:
        raise ConfigError(f"{path}: rank {rank} has another key already; take its line out first")
    try:
        path.write_text(yaml.safe_dump({**keys, rank: key}))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
