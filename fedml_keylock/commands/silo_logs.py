"""Reads the accuracies that silos log, if their files are on this machine."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

__all__ = ["SiloLogs"]

_ACCURACY = re.compile(
    r"silo (\d{1,9}), aggregate of round (\d{1,9}): accuracy in the silo (\d\.\d+)$"
)


class SiloLogs:
    """New lines of each silo-N.log in a vault's folder; lines of earlier jobs are skipped.

    Only their owners can read these files: other users, and a server on another machine, get
    nothing.

    Args:
        folder: the vault's folder; None for a job without a vault.

    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}
        for path in self._paths():
            with suppress(OSError):
                self._read[path] = path.stat().st_size

    def accuracies(self) -> dict[int, tuple[int, float]]:
        """New accuracies: silo to the round's index and the accuracy of its average.

        Example:
            >>> logs = SiloLogs(Path("."))
            >>> line = "silo 0, aggregate of round 5: accuracy in the silo 0.9320"
            >>> _ = Path("silo-0.log").write_text(line + chr(10))
            >>> logs.accuracies(), logs.accuracies()
            ({0: (5, 0.932)}, {})

        """
        found: dict[int, tuple[int, float]] = {}
        for path in self._paths():
            with suppress(OSError), path.open(errors="replace") as file:
                file.seek(self._read.get(path, 0))
                for line in file.read().splitlines():
                    if (match := _ACCURACY.match(line)) is not None:
                        found[int(match[1])] = int(match[2]), float(match[3])
                self._read[path] = file.tell()
        return found

    def _paths(self) -> list[Path]:
        return [] if self._folder is None else sorted(self._folder.glob("silo-*.log"))
