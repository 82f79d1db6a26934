"""Writes files that are complete or absent."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["check_place", "replacing"]

_OTHERS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_place(path: Path) -> None:
    """Check that a path is free, or holds a regular file.

    Renaming a file onto a device would remove the device.

    Raises:
        OSError: something else is there.

    Example:
        >>> check_place(Path("."))
        Traceback (most recent call last):
        FileExistsError: [Errno 17] it is a folder, not a file; name another path: '.'

    """
    try:
        found = stat.S_IFMT(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if found != stat.S_IFREG:
        what = f"it is {_OTHERS.get(found, 'something else')}, not a file; name another path"
        raise OSError(errno.EEXIST, what, str(path))


@contextmanager
def replacing(path: Path, *, mode: int = 0o600) -> Iterator[Path]:
    """Write to a new file beside the old one; it replaces the old one if no error occurs.

    Only one process at a time may write a path. Readers see the old file or the new one. This does
    not cover power failures (see `disk.py`).

    Args:
        path: of the file, whose folder exists.
        mode: of the new file, less the umask.

    Yields:
        The path to write to.

    Raises:
        OSError: it cannot be written, or no regular file is there; the old file is unchanged.

    Example:
        >>> path = Path("made.txt")
        >>> with replacing(path) as part:
        ...     n = part.write_text("whole")
        >>> path.read_text(), oct(path.stat().st_mode)[-3:]
        ('whole', '600')

    """
    check_place(path)
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)  # left by a killed process
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
