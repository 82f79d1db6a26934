"""Condenses a job's output for `fedml-keylock run`: progress, warnings and errors."""

from __future__ import annotations

import re
import shutil
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import click

from ..host.progress import told_in
from .fedml_log import error_in, fedml_round, fedml_test, warning_in
from .silo_logs import SiloLogs

__all__ = ["Console"]

WARNINGS = 8
"""Largest number of different warnings shown; the log has all."""
IN_A_PIPE = 9
"""Approximate number of progress lines if a line cannot be redrawn."""
MOST = 2**53
"""Upper limit of believable counts."""
KEPT = 200
"""Number of lines searched for the end of a traceback."""


class Console:
    """Reads a job's output, and shows its progress, warnings and errors.

    Args:
        ranks: number of ranks.
        silo_logs: the silos' own log files, if on this machine.
        live: whether to redraw the progress line in place.
        defended: whether the job's YAML sets a defense; else ranks that report one are ignored.

    """

    def __init__(
        self, ranks: int, silo_logs: SiloLogs, *, live: bool, defended: bool = True
    ) -> None:
        self.ranks, self.silo_logs, self.live = ranks, silo_logs, live
        self.defended = defended
        self.facts: dict[str, Any] = {}
        self.sent: dict[int, int] = {}
        self.failed = False
        self.accuracy: tuple[int, float] | None = None
        self._accuracies: dict[int, tuple[int, float]] = {}
        self._began = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._ends: float | None = None
        self._epsilon = 0.0
        self._shown: set[str] = set()
        self._more = 0
        self._drawn, self._milestone = "", 0
        self._last: deque[str] = deque(maxlen=KEPT)

    def see(self, lines: Sequence[str]) -> None:
        """Process the lines that the job printed since the last call."""
        for line in lines:
            self._see(line)
        self._accuracies.update(self.silo_logs.accuracies())
        if self._accuracies:
            latest = max(index for index, _ in self._accuracies.values())
            found = [share for index, share in self._accuracies.values() if index == latest]
            self.accuracy = latest, sum(found) / len(found)
        self._draw()

    def last_lines(self, count: int = 5) -> list[str]:
        """The job's last lines that are not empty."""
        return [_plain(line) for line in self._last if line.strip()][-count:]

    @property
    def seconds(self) -> float:
        """Seconds since the job was started."""
        return time.monotonic() - self._began

    @property
    def more_warnings(self) -> int:
        """Number of warnings that only the log has."""
        return self._more

    @property
    def progress(self) -> str:
        """The job's progress in one line; empty before its first round."""
        if "round" not in self.facts:
            return ""
        done, rounds = self.facts["round"], self.facts["rounds"]
        parts = [f"round {min(done + 1, rounds)} of {rounds}"]
        if self.accuracy is not None:
            parts.append(f"accuracy {self.accuracy[1]:.4f} after round {self.accuracy[0] + 1}")
        if self._ends is not None and done < rounds:
            parts.append(f"about {duration(max(0.0, self._ends - time.monotonic()))} left")
        return ", ".join(parts)

    def clear(self) -> None:
        """Erase the progress line from a terminal."""
        if self._drawn and self.live:
            click.echo("\r\x1b[K", nl=False)
        self._drawn = ""

    def _see(self, line: str) -> None:
        told = told_in(line)
        if told is not None:
            self._take(told)
            return
        self._last.append(line)
        if "defense" not in self.facts:  # without a lock FedML's server tests the model itself
            test, index = fedml_test(line), self.facts.get("round", 0)
            if test is not None:
                self._accuracies[0] = index, test
            if (done := fedml_round(line)) is not None:
                self._take({"round": done, "rounds": max(done, self.facts.get("rounds", 0))})
        if line.startswith("fedml-keylock: "):
            self.failed |= "rank" in line  # the ranks that end the job name the failed rank
            where = error_in([*self._last])
            self._say(line if where is None else f"{line}\n  {where}", line)
        elif (found := warning_in(line)) is not None:
            # the same warning of another rank or batch is shown once
            known = re.sub(r"\d+", "", found.partition(": ")[2])
            if known not in self._shown and len(self._shown) < WARNINGS:
                self._say(found, known)
            elif known not in self._shown:
                self._more += 1

    def _take(self, told: dict[str, Any]) -> None:
        """Process a rank's report; a line of another form may be anybody's print."""
        if not all(_is_told(name, value) for name, value in told.items()):
            return
        if "defense" in told and not self.defended:
            return
        rounds = told.get("rounds", self.facts.get("rounds", 0))
        if "round" in told and max(1, told["round"]) > rounds:
            return
        if "epsilon" in told and told["epsilon"] < self._epsilon:
            return  # of a silo that has spent less than others
        self._epsilon = told.pop("epsilon", self._epsilon)
        if "sender" in told:
            self.sent[told["sender"]] = told.get("bytes", 0)
        elif "accuracy" in told:
            self._accuracies[told.get("silo", 0)] = told.get("tested", 0), told["accuracy"]
        else:
            self.facts |= {n: _plain(v) if isinstance(v, str) else v for n, v in told.items()}
        if "round" in told:
            now, done = time.monotonic(), told["round"]
            self._first = began, at = self._first or (now, done)
            if done > at:
                self._ends = now + (now - began) / (done - at) * (self.facts["rounds"] - done)

    def _say(self, text: str, known: str) -> None:
        if known in self._shown:
            return
        self._shown.add(known)
        self.clear()
        for line in text.split("\n"):
            click.echo(_plain(line), err=True)

    def _draw(self) -> None:
        text = self.progress
        if not text or text == self._drawn:
            return
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            click.echo(f"\r\x1b[K{text[:width]}", nl=False)
            self._drawn = text
            return
        done, rounds = self.facts["round"], self.facts["rounds"]
        if done >= self._milestone:
            click.echo(text)
            self._milestone = done + max(1, -(-rounds // IN_A_PIPE))
            self._drawn = text


def _is_told(name: str, value: Any) -> bool:
    """Whether a value is valid for the fact of this name."""
    if name in ("round", "rounds", "sender", "bytes", "silo", "tested"):
        return type(value) is int and 0 <= value < MOST
    if name in ("accuracy", "epsilon"):
        return isinstance(value, float) and value >= 0
    return isinstance(value, str)


def duration(seconds: float) -> str:
    """Seconds in words.

    Example:
        >>> duration(12.4), duration(200), duration(9000)
        ('12 s', '3 min', '2.5 h')

    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _plain(line: str) -> str:
    """A line without control characters that would move the cursor."""
    return "".join(one if one.isprintable() else " " for one in line)
