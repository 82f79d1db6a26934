"""Parses lines of a job's output: FedML's progress, and warnings and errors of any source."""

from __future__ import annotations

import glob
import linecache
import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

__all__ = ["error_in", "fedml_round", "fedml_test", "warning_in"]

_ROUND = re.compile(r"=end (\d{1,9})-th round training=")
_TEST = re.compile(r"\{'test_acc': (\d+\.?\d*), 'test_loss'", re.ASCII)
_LOGGED = re.compile(
    r"\[FedML-\w+ @device-id-(\d+)\] \[[^\]]*\] \[(WARNING|ERROR|CRITICAL)\] "
    r"\[([^\]:/\0]{1,99}):(\d{1,9}):[^\]]*\] (.*)"
)
_WARNED = re.compile(r"rank (\d+): (\S.*\.py):(\d+): (\w*Warning): (.*)")
_FRAME = re.compile(r'  File "(.+)", line (\d+), in (.+)')
_ENDS = re.compile(r"fedml-keylock: rank \d+ failed")
_NOT_OURS = ("doesn't match a supported version", "pkg_resources is deprecated")
"""Warnings at the import of fedml and its dependencies, which a user cannot fix."""


def fedml_round(line: str) -> int | None:
    """Number of finished rounds in a line of FedML's server.

    Example:
        >>> fedml_round("==========end 3-th round training===========")
        3

    """
    found = _ROUND.search(line)
    return int(found[1]) if found else None


def fedml_test(line: str) -> float | None:
    """The accuracy in a line of FedML's server.

    Example:
        >>> fedml_test("[x.py:105:test] {'test_acc': 0.925, 'test_loss': 0.26}")
        0.925

    """
    found = _TEST.search(line)
    return float(found[1]) if found else None


def warning_in(line: str) -> str | None:
    """A rank's warning or error in a line; FedML's own warnings are left out.

    Example:
        >>> warning_in("[FedML-Client @device-id-2] [now] [WARNING] [main.py:9:train] few samples")
        'rank 2: warning: few samples (main.py, line 9)'
        >>> warning_in("rank 1: /job/main.py:4: UserWarning: old weights")
        'rank 1: UserWarning: old weights (main.py, line 4)'

    """
    if (warned := _WARNED.match(line)) is not None:
        rank, path, number, kind, text = warned.groups()
        if "/fedml/" in path or any(known in text for known in _NOT_OURS):
            return None
        return f"rank {rank}: {kind}: {text} ({Path(path).name}, line {number})"
    if (logged := _LOGGED.search(line)) is not None:
        rank, level, file, number, text = logged.groups()
        if level == "WARNING" and _is_fedmls(file, int(number)):
            return None
        return f"rank {rank}: {level.lower()}: {text} ({file}, line {number})"
    return None


def error_in(lines: Sequence[str]) -> str | None:
    """Place and error of a rank's failure, from its traceback, if the last line reports one.

    Example:
        >>> error_in(['  File "/job/main.py", line 7, in load', "    open(path)",
        ...           "OSError: no disk", "fedml-keylock: rank 1 failed; the job ends"])
        'OSError: no disk (/job/main.py, line 7, in load)'

    """
    *before, last = lines
    if not _ENDS.match(last):
        return None
    frames = [(at, found) for at, line in enumerate(before) if (found := _FRAME.match(line))]
    if not frames:
        return None
    at, frame = frames[-1]
    said = [line for line in before[at + 1 :] if line.strip() and not line.startswith((" ", "["))]
    where = f"{frame[1]}, line {frame[2]}, in {frame[3]}"
    return f"{said[0]} ({where})" if said else where


@cache
def _is_fedmls(file: str, line: int) -> bool:
    """Whether a file of this name is part of FedML; decided without importing it."""
    spec = find_spec("fedml")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        for path in Path(root).rglob(glob.escape(file)):
            if "warn" in linecache.getline(str(path), line):
                return True
    return False
