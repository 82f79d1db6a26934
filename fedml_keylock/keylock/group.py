"""The secret that silos share and the server does not have, and the lock that all draw from it.

Under locks of its own a silo learns nothing of the classes that only others have: what these learn
is in terms of their locks. Under one lock a job learns as it does without any. Whoever colludes
with one silo then has the lock of all.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

from torch import Tensor

from ..errors import ConfigError
from .key import Uniform, uniform_of
from .vault.disk import open_private

__all__ = ["LEAST", "group_uniform"]

LEAST = 32
"""Bytes that a secret must have: an attacker can try shorter ones against what he sees."""
MOST = 4096
LABEL = b"fedml-keylock group lock 1"


def group_uniform(path: Path, *, drawing: int = 0) -> Uniform:
    """What a group's locks are drawn with: the same for all that have the secret.

    The stream is SHAKE-256 of the secret (FIPS 202), so that nobody can tell it from chance, or
    learn one part of it from another, who does not have the secret.

    Args:
        path: an owner-only file of at least 32 random bytes, such as ``openssl rand 32`` makes.
        drawing: which of the group's locks, where it changes in a job.

    Raises:
        ConfigError: the secret is too short, or too long for one.
        VaultError: the file is missing, or others may read it.

    Example:
        >>> import os, tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "group"
        >>> with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        ...     n = file.write(bytes(range(32)))
        >>> torch.equal(group_uniform(path)((3,)), group_uniform(path)((3,)))
        True

    """
    with open_private(path, what="keylock.group_key:", follow=True) as file:
        secret = file.read(MOST + 1)
    if not LEAST <= len(secret) <= MOST:
        raise ConfigError(
            f"keylock.group_key: {path} must hold {LEAST} to {MOST} random bytes: openssl rand "
            f"-out {path} {LEAST}"
        )
    seed = hashlib.sha256(LABEL + drawing.to_bytes(8, "big") + secret).digest()
    drawn = 0

    def uniform(shape: tuple[int, ...]) -> Tensor:
        nonlocal drawn
        block = hashlib.shake_256(seed + drawn.to_bytes(8, "big"))
        drawn += 1
        return uniform_of(block.digest(4 * math.prod(shape)), shape)

    return uniform
