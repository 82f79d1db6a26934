"""The schema of report files, and reading an untrusted one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

from ...errors import ConfigError, first_line

__all__ = ["SCHEMA", "read_report", "report_schema"]

SCHEMA = "fedml-keylock/report/1"
"""Name and version of the format of ``report.json``."""
_WORDS, _WHOLE = ("attack", "knowledge", "defense", "stage"), ("round", "images")

_MOST = 1e300
"""Above any number of a report; a whole number beyond it is no float."""


def report_schema() -> str:
    """The JSON Schema of ``report.json``, as text.

    Example:
        >>> json.loads(report_schema())["properties"]["schema"]["const"] == SCHEMA
        True

    """
    return (files(__package__) / "report.schema.json").read_text(encoding="utf-8")


def read_report(path: Path) -> dict[str, Any]:
    """Read a ``report.json``, and check all that a comparison uses.

    Nothing in the file is executed, and no other file is opened.

    Args:
        path: path of the file, or of its folder.

    Raises:
        ConfigError: the file is missing, truncated, not a report, or of another version.

    Example:
        >>> read_report(Path("nowhere"))
        Traceback (most recent call last):
        fedml_keylock.errors.ConfigError: nowhere: there is no such file or folder

    """
    if not path.exists():
        raise ConfigError(f"{path}: there is no such file or folder")
    file = path / "report.json" if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no report.json in this folder") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: not a report: it is not text in UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    try:
        content = json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        cut = "it ends too early" if error.pos >= len(text.rstrip()) else "it is not JSON"
        where = f"line {error.lineno}, column {error.colno}"
        raise ConfigError(f"{file}: not a whole report: {cut} ({where})") from None
    except (ValueError, RecursionError) as error:  # a number too large, or nesting too deep
        raise ConfigError(f"{file}: not a report: {first_line(error)}") from None
    _check(file, content)
    return dict(content)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _check(file: Path, content: Any) -> None:
    """Raise ConfigError unless the parts that a comparison uses are well formed."""

    def need(name: str, value: Any, kind: type, what: str) -> None:
        wrong = not isinstance(value, kind) or (kind is int and isinstance(value, bool))
        if wrong or (isinstance(value, str) and name != "verdict" and not value.isprintable()):
            raise ConfigError(f"{file}: not a report: {name} must be {what}")

    def interval(name: str, value: Any) -> None:
        if value is None:
            return
        need(name, value, dict, "an interval or null")
        for end in ("mean", "low", "high"):
            found = value.get(end)
            if found is not None and (
                isinstance(found, bool)
                or not isinstance(found, (int, float))
                or not abs(found) < _MOST
            ):
                raise ConfigError(f"{file}: not a report: {name}.{end} must be a number or null")

    need("the file", content, dict, "a JSON object")
    version = content.get("schema")
    if version != SCHEMA:
        name, _, number = str(version).rpartition("/")
        if name == SCHEMA.rpartition("/")[0] and number.isdecimal():
            raise ConfigError(
                f"{file}: a report of version {number}; this fedml-keylock reads version "
                f"{SCHEMA.rpartition('/')[2]}"
            )
        raise ConfigError(f"{file}: not a report of fedml-keylock: it does not say {SCHEMA!r}")
    need("verdict", content.get("verdict"), str, "text")
    need("job", content.get("job"), dict, "an object")
    need("accuracy", content.get("accuracy"), dict, "an object")
    for defense, measured in content["accuracy"].items():
        need("a defense's name", defense, str, "printable text")
        need(f"accuracy of {defense}", measured, dict, "an object")
        for role, found in measured.items():
            need("a role's name", role, str, "printable text")
            interval(f"accuracy of {defense}, {role}", found)
    need("leakage", content.get("leakage"), list, "a list")
    for index, row in enumerate(content["leakage"]):
        place = f"leakage row {index}"
        need(place, row, Mapping, "an object")
        for name in _WORDS:
            need(f"{place}: {name}", row.get(name), str, "printable text")
        for name in _WHOLE:
            need(f"{place}: {name}", row.get(name), int, "a whole number")
        interval(f"{place}: ssim_aligned", row.get("ssim_aligned"))
