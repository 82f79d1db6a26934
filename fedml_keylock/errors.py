"""Every error that this package raises on purpose.

    KeyLockError
    ├── ConfigError          a field of the YAML, the command line or a call is wrong
    ├── LockError            this model cannot be locked, or is not locked
    ├── UpdateRefused        an update that must not be sent, or must not be taken in
    ├── PrivateStateError    private state was about to leave the process
    ├── VaultError           a silo's private state cannot be read or written
    ├── HostError            this FedML is not one that the defense can be put into
    ├── PluginError          a plugin does not load, or its hooks do not fit
    ├── AttackError          an attack was asked for something that it cannot do
    └── MissingExtra         an optional dependency is not installed

Each message is one line that names the thing that is wrong and what to do about it, so that it can
be shown to a user as it stands. None of them ever holds a private value. What somebody else's error
says may hold one; in a silo `keep_texts` keeps that back.
"""

import traceback
from collections.abc import Callable

__all__ = [
    "AttackError",
    "ConfigError",
    "HostError",
    "KeyLockError",
    "LockError",
    "MissingExtra",
    "PluginError",
    "PrivateStateError",
    "UpdateRefused",
    "VaultError",
    "first_line",
    "keep_texts",
    "reason_of",
    "where_kept",
]


class KeyLockError(Exception):
    """The root: catch this to catch everything that fedml_keylock raises on purpose."""


class ConfigError(KeyLockError):
    """A field is unknown, ill-typed or contradicts another."""


class LockError(KeyLockError):
    """A model has nothing that can be locked, is locked already, or is not locked."""


class UpdateRefused(KeyLockError):  # noqa: N818  # says what happened
    """An update is not the public state of a locked model."""


class PrivateStateError(KeyLockError):
    """Something other than the vault asked for private state in a form that can be sent."""


class VaultError(KeyLockError):
    """A vault file is missing, damaged, too open, or belongs to another silo or model."""


class HostError(KeyLockError):
    """The installed FedML, or the job's use of it, is not one that the defense supports."""


class PluginError(KeyLockError):
    """A plugin failed to import, or implements a hook that does not exist."""


class AttackError(KeyLockError):
    """An attack, its knowledge and the update that it was given do not fit together."""


class MissingExtra(KeyLockError):  # noqa: N818  # says what happened
    """An optional dependency is needed and is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed; install it with: pip install 'fedml-keylock[{extra}]'"
        )


_keep: Callable[[str], str | None] | None = None


def keep_texts(keep: Callable[[str], str | None] | None) -> None:
    """Have texts of others' errors kept in this process from now on; None: no more.

    Args:
        keep: writes a text down and says where it is; None if the text may be shown.

    """
    global _keep
    _keep = keep


def where_kept(error: BaseException) -> str | None:
    """Keep what somebody else's error says, with its traceback, and say where; None: show it."""
    if _keep is None or isinstance(error, KeyLockError):
        return None
    return _keep("".join(traceback.format_exception(error)).rstrip())


def first_line(error: BaseException) -> str:
    r"""The first line of what anyone's error says, cut; or its kind where it says nothing.

    In a silo of a defended job it says where the text is kept in its place.

    Example:
        >>> first_line(RuntimeError("no memory\nat all")), first_line(KeyError())
        ('no memory', 'KeyError')

    """
    kept = where_kept(error)
    if kept is not None:
        return f"{type(error).__name__}, {kept}"
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)[:200]


def reason_of(error: BaseException) -> str:
    """Why something did not run, in one line: our own error's, or anyone's with its kind.

    Example:
        >>> reason_of(AttackError("no images")), reason_of(MemoryError())
        ('no images', 'MemoryError')

    """
    if isinstance(error, KeyLockError):
        return str(error)
    kind, said = type(error).__name__, first_line(error)
    return said if said.startswith(kind) else f"{kind}: {said}"
