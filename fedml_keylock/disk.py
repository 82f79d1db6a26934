"""Handles owner-only files: checks them, writes them atomically, and locks them for one process."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from .errors import VaultError
from .files import check_place

__all__ = [
    "append_private",
    "check_folder",
    "claim",
    "make_folder",
    "open_private",
    "release",
    "remove_leftovers",
    "write_private",
]

TEMPORARY = ".tmp"
"""Suffix of a file that is not yet written completely."""

_RETRY = 0.05
"""Seconds between two attempts to lock what another process holds."""

_claims: dict[Path, tuple[int, int]] = {}
"""Lock files that this process holds, each with its process id and open descriptor."""


def open_private(path: Path, *, what: str = "vault", follow: bool = False) -> BinaryIO:
    """Open a file that only its owner can read, and whose owner runs this process.

    Args:
        path: of the file.
        what: name of the file in messages.
        follow: whether it may be a symbolic link. A vault may not: saving would replace the link,
            and leave the file behind it outdated. Its folder may be a link.

    Raises:
        VaultError: the file is missing, not regular, another user's, or readable by others.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "secret"
        >>> write_private(path, b"whole")
        >>> with open_private(path) as file:
        ...     file.read()
        b'whole'

    """
    # without O_NONBLOCK this would wait forever for a pipe
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow:
            raise VaultError(
                f"{what} {path}: it is a symbolic link; put the file itself there"
            ) from None
        raise VaultError(f"{what} {path}: {error.strerror}") from None
    try:
        _check_private(os.fstat(descriptor), f"{what} {path}", path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_private(found: os.stat_result, who: str, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise VaultError(f"{who}: it is not a regular file")
    _check_owner(found, who, f"read it; it must be 0600 (chmod 600 {path})")


def _check_owner(found: os.stat_result, who: str, may: str) -> None:
    if found.st_uid != os.geteuid():
        raise VaultError(
            f"{who}: it belongs to user {found.st_uid}, and this process is user {os.geteuid()}'s"
        )
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        raise VaultError(f"{who}: its mode is {mode:04o}, so that others may {may}")


def make_folder(path: Path) -> None:
    """Create a folder for its owner only, if it does not exist.

    Raises:
        VaultError: it cannot be created, or it exists and others may use it.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "vault"
        >>> make_folder(path)
        >>> oct(path.stat().st_mode)[-3:]
        '700'

    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise VaultError(f"vault {path}: cannot be written: {error.strerror}") from None
    check_folder(path)


def check_folder(path: Path) -> None:
    """Check that a vault's folder belongs to this process's user, who alone may use it.

    Anyone who may write there could replace files. Anyone who may read there sees which silos there
    are, and when each has trained.

    Raises:
        VaultError: it belongs to another user, or others may use it.

    Example:
        >>> check_folder(Path(tempfile.mkdtemp()))

    """
    try:
        found = path.stat()
    except OSError as error:
        raise VaultError(f"vault {path}: {error.strerror}") from None
    _check_owner(found, f"vault {path}", f"use it; it must be 0700 (chmod 700 {path})")


def write_private(path: Path, content: bytes, *, what: str = "vault") -> None:
    """Write an owner-only file atomically: after a crash it is the old one or the new one.

    Raises:
        VaultError: the file cannot be written, or its place is not a regular file; what was there
            is unchanged.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "secret"
        >>> write_private(path, b"whole")
        >>> oct(path.stat().st_mode)[-3:]
        '600'

    """
    try:
        check_place(path)
        # mkstemp creates it with mode 0600
        descriptor, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY
        )
        try:
            with _to_write(descriptor) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
        # the new name is on disk only after its folder is
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise VaultError(f"{what} {path}: cannot be written: {error.strerror}") from None


def append_private(path: Path, line: str) -> None:
    r"""Append a line to an owner-only file in an owner-only folder; creates both if needed.

    Raises:
        VaultError: the file cannot be written.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "vault" / "silo-0.log"
        >>> append_private(path, "round 0")
        >>> path.read_text(), oct(path.stat().st_mode)[-3:]
        ('round 0\n', '600')

    """
    make_folder(path.parent)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(path, flags, 0o600), "a", encoding="utf-8") as file:
            file.write(f"{line}\n")
    except OSError as error:
        raise VaultError(f"{path}: cannot be written: {error.strerror}") from None


def _to_write(descriptor: int) -> BinaryIO:
    try:
        return os.fdopen(descriptor, "wb")
    except BaseException:
        os.close(descriptor)
        raise


def claim(path: Path, *, what: str, wait: float = 0.0) -> bool:
    """Hold a lock file as the only process, until `release` or exit.

    It is a POSIX record lock, not `flock`: forked children, such as a data loader's workers, do not
    inherit it. So it ends with this process even if a worker lives on, and a worker cannot write in
    its parent's place.

    Args:
        path: of the lock file, which is created and never removed: removal would let two in.
        what: name of the locked thing in messages.
        wait: how many seconds to wait for another process to release it.

    Returns:
        True if it was claimed now; False if this process held it already.

    Raises:
        VaultError: another process holds it, or it cannot be locked at all.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "lock"
        >>> claim(path, what="this example"), claim(path, what="this example")
        (True, False)

    """
    path = Path(os.path.abspath(path))
    owner, descriptor = _claims.get(path, (0, -1))
    if owner == os.getpid():
        if _is_at(descriptor, path):
            return False
        os.close(descriptor)  # the folder was removed meanwhile
        del _claims[path]
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
        try:
            _lock(descriptor, what, time.monotonic() + wait)
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        raise VaultError(f"{what} cannot be claimed: {path}: {error.strerror}") from None
    _claims[path] = (os.getpid(), descriptor)
    return True


def release(path: Path) -> None:
    """Let another process claim a lock file. Does nothing if this process does not hold it.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "lock"
        >>> held = claim(path, what="this example")
        >>> release(path)
        >>> claim(path, what="this example")
        True

    """
    owner, descriptor = _claims.pop(Path(os.path.abspath(path)), (0, -1))
    if owner == os.getpid():
        os.close(descriptor)


def _lock(descriptor: int, what: str, until: float) -> None:
    while not _try_lock(descriptor):
        if time.monotonic() < until:
            time.sleep(_RETRY)
            continue
        holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
        raise VaultError(
            f"{what} is in use by {holder}; only one process at a time may write it: end that one "
            "first, or name another folder in keylock.vault"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except OSError:
        return False


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove files that killed processes left half written. Only for the holder of the claim.

    Args:
        folder: of the files; it need not exist.
        pattern: of the final names, such as ``silo-2.*``.

    Raises:
        VaultError: a file cannot be removed.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / ".silo-2.safetensors.x1y2z3.tmp").touch()
        >>> remove_leftovers(folder, "silo-2.*")
        >>> list(folder.iterdir())
        []

    """
    for path in folder.glob(f".{pattern}{TEMPORARY}"):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise VaultError(f"vault {path}: cannot be removed: {error.strerror}") from None
