"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing"]


@contextmanager
def replacing(path: Path, *, mode: int = 0o600) -> Iterator[Path]:
    """An empty file beside another one, which takes its place when it was written without error.

    One process at a time may write a path. Whoever reads it finds the old file or the new one; what
    a power failure leaves is another matter (see `keylock.vault.disk`).

    Args:
        path: of the file, whose folder exists.
        mode: of the new file, less the umask.

    Yields:
        Where to write.

    Raises:
        OSError: it cannot be written; what was there before is untouched.

    Example:
        >>> path = Path("made.txt")
        >>> with replacing(path) as part:
        ...     n = part.write_text("whole")
        >>> path.read_text(), oct(path.stat().st_mode)[-3:]
        ('whole', '600')

    """
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)  # of a process that was killed
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
