"""Keeps a rank's privacy accounts: plans a job, checks budgets, records each round before it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UpdateRefused
from ..types import PrivacyLoss, Schedule
from .accountant import epsilon_of, spending_of
from .budget import Budget, check_examples, ratio_in_words
from .ledger import Ledger, Page
from .noise_config import NoiseConfig

__all__ = ["Accounts"]


@dataclass
class Accounts:
    """The privacy accounts of a lock with noise, over a job.

    Attributes:
        noise: the noise section of the YAML.
        colluders: how many silos may collude with the server.
        folder: of the vault, which holds the ledgers.
        budget: of the job; None before `plan`.

    """

    noise: NoiseConfig
    colluders: int
    folder: Path
    budget: Budget | None = None
    _entered: list[int] = field(default_factory=list)
    _done: int = 0

    @property
    def multiplier(self) -> float | None:
        """z; None until it is solved for, if the YAML gives epsilon."""
        return self.noise.multiplier if self.budget is None else self.budget.multiplier

    def plan(self, schedule: Schedule) -> int:
        """Plan how many rounds to run; see `Budget.of`."""
        self.budget = Budget.of(self.noise, self.colluders, schedule)
        if self.budget.stops:
            logging.info("%s", self.budget.stops)
        return self.budget.rounds

    def tell(self, numbers: int) -> None:
        """Log once, before a job begins, what its noise guarantees.

        Args:
            numbers: how many numbers are noised.

        """
        if (budget := self.budget) is None:
            return
        logging.info("%s", budget.summary)
        if (ratio := budget.ratio(numbers)) is not None:
            logging.log(logging.WARNING if ratio > 1 else logging.INFO, "%s", ratio_in_words(ratio))

    def enter(self, silo: int) -> None:
        """Check what a silo has spent before it takes part.

        Raises:
            ConfigError: the rest of the job would exceed the budget.
            VaultError: its ledger cannot be read.

        """
        page = self._ledger(silo).read()
        if self.budget is not None:
            self.budget.check_left(page, silo, self._done)
        self._entered.append(silo)

    def spend(self, silo: int) -> None:
        """Record the cost of what a silo is about to send; see `spend_entered`."""
        self._entered = [silo]
        self.spend_entered()

    def spend_entered(self) -> None:
        """Record the cost of what all entered silos are about to send, before it is sent.

        Raises:
            UpdateRefused: a silo would exceed its budget.
            VaultError: a ledger cannot be written.

        """
        assert self.multiplier is not None
        one = spending_of(self.noise, self.multiplier)
        for silo in self._entered:
            self._ledger(silo).add(one, check=self._check)
        self._entered.clear()
        self._done += 1

    def loss(self, silo: int) -> PrivacyLoss:
        """What a silo has spent so far.

        Raises:
            VaultError: its ledger cannot be read.

        """
        page, noise = self._ledger(silo).read(), self.noise
        epsilon = epsilon_of(page.spent, noise.delta)
        return PrivacyLoss(epsilon, noise.delta, noise.unit, page.rounds)

    def weigh(self, samples: float) -> float:
        """A silo's weight: 1, or under `unit: example` its number of examples; checks delta.

        Raises:
            ConfigError: delta is too large for it.

        """
        if self.noise.unit == "silo":
            return 1.0
        check_examples(self.noise, samples)
        return samples

    def _check(self, page: Page) -> None:
        limit = self.noise.stop_at
        if limit is not None and epsilon_of(page.spent, self.noise.delta) > limit:
            raise UpdateRefused(
                f"epsilon would pass keylock.noise.stop_at, {limit:g}: the vault's ledger has "
                "grown since the job began; nothing is sent"
            )

    def _ledger(self, silo: int) -> Ledger:
        return Ledger(self.folder, silo, self.noise.unit)
