"""Records on disk what a silo has spent, so that later jobs on the same vault count on."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..disk import claim, make_folder, open_private, release, write_private
from ..errors import ConfigError, VaultError
from .accountant import Spending

__all__ = ["Ledger", "Page", "ledgers_in"]

WHAT = "ledger"
SCHEMA = "fedml-keylock privacy 1"
WAIT = 10.0
"""Seconds to wait for another process that writes the same ledger."""


@dataclass(frozen=True)
class Page:
    """The content of a ledger.

    Attributes:
        spent: each kind of cost once, with its count.
        rounds: how many rounds were counted.

    """

    spent: tuple[Spending, ...] = ()
    rounds: int = 0

    def with_round(self, one: Spending) -> Page:
        """The content after another round of this cost.

        Example:
            >>> Page().with_round(Spending(2.0)).with_round(Spending(2.0)).spent
            (Spending(multiplier=2.0, rate=1.0, count=2),)

        """
        counts = Counter[tuple[float, float]]()
        for each in (*self.spent, one):
            counts[each.multiplier, each.rate] += each.count
        spent = tuple(Spending(*kind, count) for kind, count in counts.items())
        return replace(self, spent=spent, rounds=self.rounds + 1)


@dataclass(frozen=True)
class Ledger:
    """One silo's ledger, an owner-only file in the vault's folder.

    Attributes:
        folder: of the vault; created on the first write, for its owner only.
        silo: index of the silo.
        unit: what is protected: silo or example. Costs of the two do not add up.

    Example:
        >>> import tempfile
        >>> ledger = Ledger(Path(tempfile.mkdtemp()), 0, "silo")
        >>> ledger.add(Spending(2.0)).rounds
        1
        >>> ledger.spent
        [Spending(multiplier=2.0, rate=1.0, count=1)]

    """

    folder: Path
    silo: int
    unit: str

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / f"silo-{self.silo}.privacy.json"

    @property
    def spent(self) -> list[Spending]:
        """All that was spent so far; see `read`."""
        return list(self.read().spent)

    def read(self) -> Page:
        """The file's content; without a file nothing was spent.

        Raises:
            VaultError: the file cannot be read, is readable by others, is not a ledger, or belongs
                to another silo or another unit.

        """
        if not os.path.lexists(self.path):
            return Page()
        with open_private(self.path, what=WHAT) as file:
            page, unit = _parsed(file.read(), self.path, self.silo)
        if unit != self.unit:
            raise VaultError(
                f"{WHAT} {self.path}: it counts unit: {unit}, this job's is {self.unit}, and the "
                "two do not add up: name another folder in keylock.vault"
            )
        return page

    def add(self, one: Spending, *, check: Callable[[Page], None] = lambda page: None) -> Page:
        """Count a round, on disk before this returns.

        Args:
            one: its cost.
            check: called with the new content; raises to leave the file as it was.

        Raises:
            VaultError: the file cannot be read or written; it is unchanged.

        """
        make_folder(self.folder)
        lock = self.folder / f".{self.path.name}.lock"
        held = claim(lock, what=f"{WHAT} {self.path}", wait=WAIT)
        try:
            page = self.read().with_round(one)
            check(page)
            content: dict[str, Any] = {"schema": SCHEMA, "silo": self.silo, "unit": self.unit}
            content |= {"rounds": page.rounds, "spent": [asdict(each) for each in page.spent]}
            write_private(self.path, json.dumps(content, indent=1).encode(), what=WHAT)
        finally:
            if held:
                release(lock)
        return page


def ledgers_in(folder: Path, unit: str) -> list[Ledger]:
    """The ledgers in a vault's folder, by silo; empty if there is no folder.

    Example:
        >>> ledgers_in(Path("nowhere"), "silo")
        []

    """
    found = (
        re.fullmatch(r"silo-(\d+)\.privacy\.json", path.name) for path in folder.glob("silo-*")
    )
    return [Ledger(folder, silo, unit) for silo in sorted(int(each[1]) for each in found if each)]


def _parsed(content: bytes, path: Path, silo: int) -> tuple[Page, str]:
    """A file's content, and its unit."""
    try:
        read = json.loads(content)
        if read["schema"] != SCHEMA or read["silo"] != silo:
            raise ValueError
        spent: Sequence[Spending] = [Spending(**each) for each in read["spent"]]
        return Page(tuple(spent), int(read["rounds"])), str(read["unit"])
    except (ValueError, KeyError, TypeError, ConfigError):
        raise VaultError(
            f"{WHAT} {path}: it is no ledger of silo {silo}, or is damaged: without it nobody "
            "knows what was spent; put back a copy of it, or name another folder in keylock.vault"
        ) from None
