"""Writes a report's files, each whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from ...errors import ConfigError
from ...files import check_place

__all__ = ["remove", "write_all"]


def write_all(folder: Path, contents: Mapping[Path, bytes]) -> None:
    """Write files into a folder, made if missing; none is replaced before all are on disk.

    Raises:
        ConfigError: a file cannot be written; names it.

    Example:
        >>> write_all(Path("made"), {Path("made/a.txt"): b"a"})
        >>> Path("made/a.txt").read_bytes()
        b'a'

    """
    path = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in contents:
            check_place(path)
        with TemporaryDirectory(dir=folder, prefix=".report-") as temporary:
            for path, content in contents.items():
                (Path(temporary) / path.name).write_bytes(content)
            for path in contents:
                os.replace(Path(temporary) / path.name, path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"report {path}: cannot be written: {reason}") from None


def remove(path: Path) -> None:
    """Remove a file of an earlier report, if it exists; ConfigError if it cannot be removed."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"report {path}: cannot be removed: {error.strerror}") from None
