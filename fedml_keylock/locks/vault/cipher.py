"""Encrypts a vault under a passphrase: scrypt, and AES-256-GCM over content and header."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from ...disk import open_private
from ...errors import ConfigError, PrivateStateError, VaultError

__all__ = ["PASSPHRASE", "Cipher", "Kdf"]

PASSPHRASE = "FEDML_KEYLOCK_PASSPHRASE"  # noqa: S105  # the name of a variable
"""Environment variable with the passphrase; with _FILE appended, the one that names its file."""

NAME = "aes-256-gcm"
NONCE = 12
"""Bytes of GCM's nonce, which is drawn anew for each save."""
SALT = 16
MEMORY = 256 * 2**20
"""Bytes that a file's header may make scrypt use: eight times our default."""
LONGEST = 4096
"""Bytes of the longest passphrase: a longer file is probably the wrong one."""


@dataclass(frozen=True)
class Kdf:
    """How a key is derived from a passphrase: scrypt's salt and cost. Public, in the file's header.

    Attributes:
        salt: 16 bytes.
        n: cost; memory is ``128 * n * r`` bytes, 32 MiB by default.
        r: block size.
        p: parallelism.

    """

    salt: bytes
    n: int = 2**15
    r: int = 8
    p: int = 1

    def entries(self) -> dict[str, str]:
        """Its entries in a file's header.

        Example:
            >>> Kdf(bytes(16)).entries()["n"]
            '32768'

        """
        cost = {"n": str(self.n), "r": str(self.r), "p": str(self.p)}
        return {"kdf": "scrypt", **cost, "salt": self.salt.hex()}

    @classmethod
    def of(cls, header: Mapping[str, str]) -> Kdf:
        """Read it from a header, within bounds: a foreign file must not demand gigabytes.

        Raises:
            VaultError: an entry is missing, of another kind, or out of bounds.

        Example:
            >>> Kdf.of({"kdf": "scrypt", "n": "1073741824", "r": "8", "p": "1", "salt": "00" * 16})
            Traceback (most recent call last):
            fedml_keylock.errors.VaultError: its scrypt parameters are out of bounds

        """
        if header.get("kdf") != "scrypt":
            raise VaultError(f"its key derivation is {header.get('kdf')!r}, not 'scrypt'")
        n, r, p = (_number(header.get(name)) for name in ("n", "r", "p"))
        power_of_two = n >= 2 and n & (n - 1) == 0
        if not power_of_two or r < 1 or not 1 <= p <= 4 or 128 * n * r > MEMORY:
            raise VaultError("its scrypt parameters are out of bounds")
        return cls(_bytes(header, "salt", SALT), n, r, p)


class Cipher:
    """Encrypts and decrypts a vault's files under one passphrase, which it never shows.

    The key is derived when first needed and kept: one for all files that a process writes, and one
    for each salt that it reads.

    Args:
        passphrase: not empty.

    Raises:
        ConfigError: it is empty, or longer than 4096 bytes.

    Example:
        >>> cipher = Cipher(b"correct horse")
        >>> header, sealed = cipher.seal(b"private", {"silo": "2"})
        >>> cipher.open(sealed, header)
        b'private'
        >>> cipher
        Cipher(aes-256-gcm)

    """

    def __init__(self, passphrase: bytes) -> None:
        if not 0 < len(passphrase) <= LONGEST:
            raise ConfigError(f"a passphrase must have 1 to {LONGEST} bytes")
        self._passphrase = passphrase
        self._key = lru_cache(maxsize=32)(self._derive)
        self._own: Kdf | None = None

    @classmethod
    def from_environment(cls, variable: str = PASSPHRASE) -> Cipher:
        """Read the passphrase from a variable, or from the owner-only file that another one names.

        A file is safer: any process of the same user can read a process's environment, and
        `mpiexec` sends its own to every host of the job.

        Args:
            variable: its name; with ``_FILE`` appended, the variable that names the file. The file
                may be a link. A newline at its end is not part of the passphrase.

        Raises:
            ConfigError: neither is set, both are, or the passphrase is empty.
            VaultError: the file is missing, or other users may read it.

        """
        names_file = f"{variable}_FILE"
        # the raw bytes: a passphrase need not be valid in this process's locale
        given = os.environb.get(variable.encode())
        path = os.environ.get(names_file)
        if given and path:
            raise ConfigError(f"{variable} and {names_file} are both set; set one of them")
        if path:
            with open_private(Path(path), what=f"{names_file}:", follow=True) as file:
                given = file.read(LONGEST + 3)
            given = given.removesuffix(b"\n").removesuffix(b"\r")
            if not given:
                raise ConfigError(f"{names_file}: {path} is empty, and must hold the passphrase")
        if not given:
            raise ConfigError(
                f"the vault's passphrase is missing: set {variable}, or let {names_file} name an "
                "owner-only file that holds it"
            )
        return cls(given)

    def seal(self, content: bytes, header: Mapping[str, str]) -> tuple[dict[str, str], bytes]:
        """Encrypt content, and authenticate a header with it.

        Returns:
            The header with the entries needed to open it, and the sealed content.

        Raises:
            VaultError: the content is 2 GiB or more.

        """
        if self._own is None:
            self._own = Kdf(os.urandom(SALT))
        nonce = os.urandom(NONCE)
        whole = {**header, "cipher": NAME, **self._own.entries(), "nonce": nonce.hex()}
        try:
            sealed = AESGCM(self._key(self._own)).encrypt(nonce, content, _authenticated(whole))
        except OverflowError:
            raise VaultError("too large to be encrypted: 2 GiB or more") from None
        return whole, sealed

    def open(self, sealed: bytes, header: Mapping[str, str]) -> bytes:
        """Decrypt content that was sealed with exactly this header.

        Raises:
            VaultError: the passphrase is another, or content or header have changed.

        """
        if header.get("cipher") != NAME:
            raise VaultError(f"its cipher is {header.get('cipher')!r}, not {NAME!r}")
        kdf, nonce = Kdf.of(header), _bytes(header, "nonce", NONCE)
        try:
            return AESGCM(self._key(kdf)).decrypt(nonce, sealed, _authenticated(header))
        except InvalidTag:
            raise VaultError(
                "the passphrase is wrong, or the file was changed after it was written "
                "(the cipher cannot tell which)"
            ) from None

    def _derive(self, kdf: Kdf) -> bytes:
        return Scrypt(salt=kdf.salt, length=32, n=kdf.n, r=kdf.r, p=kdf.p).derive(self._passphrase)

    def __repr__(self) -> str:
        return f"Cipher({NAME})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise PrivateStateError("a vault's cipher cannot be pickled: it holds the passphrase")


def _authenticated(header: Mapping[str, str]) -> bytes:
    return json.dumps(dict(header), sort_keys=True).encode()


def _number(text: str | None) -> int:
    """A short decimal number; 0, which is out of bounds, for any other text."""
    return int(text) if text and len(text) < 12 and text.isascii() and text.isdigit() else 0


def _bytes(header: Mapping[str, str], name: str, length: int) -> bytes:
    try:
        found = bytes.fromhex(header.get(name, ""))
    except ValueError:
        found = b""
    if len(found) != length:
        raise VaultError(f"damaged (its {name} is not {length} bytes)")
    return found
