"""Records where a report's figures come from: versions, hashes of inputs, the date."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from torch import Tensor

from ..errors import ConfigError
from ..tensors import raw

__all__ = ["data_hash", "file_hash", "today", "versions"]

PACKAGES = ("fedml-keylock", "fedml", "torch", "torchvision", "numpy", "torchmetrics", "scipy")


def versions(more: Iterable[str] = ()) -> dict[str, str]:
    """Versions of Python and of the installed packages that figures depend on.

    Example:
        >>> {"Python", "torch"} <= versions(["no-such-package"]).keys()
        True

    """
    found = {"Python": platform.python_version(), "system": platform.platform()}
    for name in (*PACKAGES, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def file_hash(path: Path) -> str:
    """SHA-256 of a file, as ``sha256sum`` prints it; ConfigError if it cannot be read.

    Example:
        >>> _ = Path("a.txt").write_bytes(b"abc")
        >>> file_hash(Path("a.txt"))[:16]
        'ba7816bf8f01cfea'

    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def data_hash(*tensors: Tensor) -> str:
    """SHA-256 of tensors: their types, shapes and numbers.

    Example:
        >>> import torch
        >>> data_hash(torch.zeros(2)) == data_hash(torch.zeros(2, 1))
        False

    """
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(raw(tensor))
    return digest.hexdigest()


def today() -> str:
    """Today's date in UTC, in ISO 8601.

    Example:
        >>> len(today())
        10

    """
    return datetime.now(UTC).date().isoformat()
