"""Reads a secret that ranks share from a file.

Silos combine it with the keys that they agree on themselves. Under `lock: rotated` anyone who
colludes with one silo can rotate back the updates of all; under `lock: sealed` pairwise masks stay.
"""

from __future__ import annotations

from pathlib import Path

from ..disk import open_private
from ..errors import ConfigError

__all__ = ["LEAST", "group_secret"]

LEAST = 32
"""Least bytes of a secret: an attacker could try all shorter ones."""
MOST = 4096


def group_secret(path: Path, *, name: str = "group_key") -> bytes:
    """The secret in a group's key file.

    Args:
        path: an owner-only file of at least 32 random bytes, for example from ``openssl rand 32``.
        name: of the setting that names the file, for messages.

    Raises:
        ConfigError: the secret is too short or too long.
        VaultError: the file is missing, or others may read it.

    Example:
        >>> import os, tempfile
        >>> path = Path(tempfile.mkdtemp()) / "group"
        >>> with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        ...     n = file.write(bytes(range(32)))
        >>> len(group_secret(path))
        32

    """
    with open_private(path, what=f"keylock.{name}:", follow=True) as file:
        secret: bytes = file.read(MOST + 1)
    if not LEAST <= len(secret) <= MOST:
        raise ConfigError(
            f"keylock.{name}: {path} must hold {LEAST} to {MOST} random bytes: openssl rand "
            f"-out {path} {LEAST}"
        )
    return secret
