"""What of a job's output `fedml-keylock run` shows: where it is, warnings, errors, and the end."""

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
"""How many different warnings are shown; the log has all."""
IN_A_PIPE = 9
"""About how many lines tell of progress where they cannot be redrawn."""
MOST = 2**53
"""Above what a job counts."""
KEPT = 200
"""Lines that are looked through for the end of a traceback."""


class Console:
    """Reads what a job prints, and shows what a user waits for.

    Args:
        ranks: of the job.
        silo_logs: what silos write into files of their own, where they are on this machine.
        live: whether one line is redrawn in place.
        defended: whether the job's YAML asks for a defense; else no rank is believed to have one.

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
        """Take in the lines that the job has printed since the last call."""
        for line in lines:
            self._see(line)
        self._accuracies.update(self.silo_logs.accuracies())
        if self._accuracies:
            latest = max(index for index, _ in self._accuracies.values())
            found = [share for index, share in self._accuracies.values() if index == latest]
            self.accuracy = latest, sum(found) / len(found)
        self._draw()

    def last_lines(self, count: int = 5) -> list[str]:
        """What the job printed last, without what is empty."""
        return [_plain(line) for line in self._last if line.strip()][-count:]

    @property
    def seconds(self) -> float:
        """Since the job was started."""
        return time.monotonic() - self._began

    @property
    def more_warnings(self) -> int:
        """How many warnings were not shown, as the log has them."""
        return self._more

    @property
    def progress(self) -> str:
        """Where the job is, in one line; empty before its first round."""
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
        """Take the progress line off a terminal."""
        if self._drawn and self.live:
            click.echo("\r\x1b[K", nl=False)
        self._drawn = ""

    def _see(self, line: str) -> None:
        told = told_in(line)
        if told is not None:
            self._take(told)
            return
        self._last.append(line)
        if "defense" not in self.facts:  # then FedML's server has and tests the model itself
            test, index = fedml_test(line), self.facts.get("round", 0)
            if test is not None:
                self._accuracies[0] = index, test
            if (done := fedml_round(line)) is not None:
                self._take({"round": done, "rounds": max(done, self.facts.get("rounds", 0))})
        if line.startswith("fedml-keylock: "):
            self.failed |= "rank" in line  # as whoever ends a job says which one
            where = error_in([*self._last])
            self._say(line if where is None else f"{line}\n  {where}", line)
        elif (found := warning_in(line)) is not None:
            # the same of another rank, or of another batch, is not said again
            known = re.sub(r"\d+", "", found.partition(": ")[2])
            if known not in self._shown and len(self._shown) < WARNINGS:
                self._say(found, known)
            elif known not in self._shown:
                self._more += 1

    def _take(self, told: dict[str, Any]) -> None:
        """Take in what a rank tells; what is not as ranks tell it is anybody's print."""
        if not all(_is_told(name, value) for name, value in told.items()):
            return
        if "defense" in told and not self.defended:
            return
        rounds = told.get("rounds", self.facts.get("rounds", 0))
        if "round" in told and max(1, told["round"]) > rounds:
            return
        if "epsilon" in told and told["epsilon"] < self._epsilon:
            return  # of a silo that has spent less than another
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
    """Whether a fact of that name has such values."""
    if name in ("round", "rounds", "sender", "bytes", "silo", "tested"):
        return type(value) is int and 0 <= value < MOST
    if name in ("accuracy", "epsilon"):
        return isinstance(value, float) and value >= 0
    return isinstance(value, str)


def duration(seconds: float) -> str:
    """So many seconds, in words.

    Example:
        >>> duration(12.4), duration(200), duration(9000)
        ('12 s', '3 min', '2.5 h')

    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _plain(line: str) -> str:
    """A line of a job's without what would move a terminal's cursor."""
    return "".join(one if one.isprintable() else " " for one in line)
