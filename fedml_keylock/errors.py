"""Defines every error that this package raises on purpose.

    KeyLockError
    ├── ConfigError          a field of the YAML, the command line or a call is wrong
    ├── LockError            this model cannot be locked, or is not locked
    ├── UpdateRefused        an update that must not be sent or must not be accepted
    ├── PrivateStateError    private state was about to leave the process
    ├── VaultError           a silo's private state cannot be read or written
    ├── HostError            this FedML, or the job's use of it, is not supported
    ├── PluginError          a plugin does not load, or its hooks do not fit
    ├── AttackError          an attack cannot do what was asked
    └── MissingExtra         an optional dependency is not installed

Each message is one line that names what is wrong and what to do about it, fit to show to a user. No
message ever holds a private value. Errors of other packages may hold one; `keep_texts` withholds
their texts in a silo.
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
    """The base class: catch it to catch every error that fedml_keylock raises on purpose."""


class ConfigError(KeyLockError):
    """A field is unknown, ill-typed or contradicts another."""


class LockError(KeyLockError):
    """A model has nothing that can be locked, is locked already, or is not locked."""


class UpdateRefused(KeyLockError):  # noqa: N818  # says what happened
    """An update is not the public state of a locked model."""


class PrivateStateError(KeyLockError):
    """Something other than the vault requested private state in a form that can be sent."""


class VaultError(KeyLockError):
    """A vault file is missing, damaged, too open, or belongs to another silo or model."""


class HostError(KeyLockError):
    """The defense does not support the installed FedML, or the job's use of it."""


class PluginError(KeyLockError):
    """A plugin failed to import, or implements a hook that does not exist."""


class AttackError(KeyLockError):
    """An attack, its knowledge and its update do not fit together."""


class MissingExtra(KeyLockError):  # noqa: N818  # says what happened
    """An optional dependency is needed and is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed; install it with: pip install 'fedml-keylock[{extra}]'"
        )


_keep: Callable[[str], str | None] | None = None


def keep_texts(keep: Callable[[str], str | None] | None) -> None:
    """Withhold the texts of other packages' errors in this process; None ends it.

    Args:
        keep: writes a text to a file and returns where; returns None if the text may be shown.

    """
    global _keep
    _keep = keep


def where_kept(error: BaseException) -> str | None:
    """Write another package's error to a file, and return where; None if it may be shown."""
    if _keep is None or isinstance(error, KeyLockError):
        return None
    return _keep("".join(traceback.format_exception(error)).rstrip())


def first_line(error: BaseException) -> str:
    r"""The first line of any error's text, shortened; its class if it has no text.

    In a silo of a defended job it names the file with the text instead.

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
    """Why something failed, in one line: our own error's text, or any other's with its class.

    Example:
        >>> reason_of(AttackError("no images")), reason_of(MemoryError())
        ('no images', 'MemoryError')

    """
    if isinstance(error, KeyLockError):
        return str(error)
    kind, said = type(error).__name__, first_line(error)
    return said if said.startswith(kind) else f"{kind}: {said}"
