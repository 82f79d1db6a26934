"""Computes what a job's noise guarantees, from its settings and its schedule of silos."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from ..errors import ConfigError
from ..types import Schedule
from .accountant import Spending, epsilon_of, multiplier_for, rounds_within, spending_of
from .adaptive import QuantileClip
from .ledger import Page
from .noise_config import NoiseConfig

__all__ = ["Budget", "check_examples", "honest_silos", "ratio_in_words"]


@dataclass(frozen=True)
class Budget:
    """A job's noise, solved for its rounds. It is public, and the same on every rank.

    FedML's choice of silos is public too, so it gives no amplification by sampling: what counts is
    the number of rounds in which a silo takes part.

    Attributes:
        noise: the noise section of the YAML.
        colluders: how many silos may collude with the server.
        schedule: which silos take part in each round.
        multiplier: z: the YAML's, or the one that its epsilon needs.

    """

    noise: NoiseConfig
    colluders: int
    schedule: Schedule
    multiplier: float

    @classmethod
    def of(cls, noise: NoiseConfig, colluders: int, schedule: Schedule) -> Budget:
        """Solve for a job's noise.

        Args:
            noise: the noise section of the YAML.
            colluders: as declared.
            schedule: of the job.

        Raises:
            ConfigError: only colluding silos would add noise, delta is as large as one over the
                number of silos, stop_at is below the cost of one round, no noise reaches the wanted
                epsilon, votes on the clip leave nothing for updates, or dp-accounting is not
                installed.

        """
        made = cls(noise, colluders, schedule, noise.multiplier or 0.0)
        made.honest  # noqa: B018  # raises if no honest silo adds noise
        if noise.unit == "silo":
            _check_delta(noise.delta, schedule.silos, "silos")
        if noise.epsilon is not None:
            one = spending_of(noise, 1.0)
            count = made.most_planned * one.count
            found = multiplier_for(noise.epsilon, noise.delta, rate=one.rate, count=count)
            made = replace(made, multiplier=found)
        made.costs(1)  # raises now, not later in the job, also if nothing is solved for
        made.on_updates  # noqa: B018  # likewise
        if schedule.rounds and not made.rounds:
            raise ConfigError(
                f"keylock.noise.stop_at: one round costs epsilon {made.costs(1):.3g}, and "
                f"{noise.stop_at:g} may be spent: raise stop_at, or multiplier"
            )
        return made

    @property
    def one(self) -> Spending:
        """The cost of taking part in one round."""
        return spending_of(self.noise, self.multiplier)

    @property
    def on_updates(self) -> float:
        """The multiplier for updates alone: above z if votes on the clip are noised too."""
        if self.noise.adaptive is None:
            return self.multiplier
        return QuantileClip.of(self.noise.adaptive, self.multiplier, self.each).multiplier

    def costs(self, rounds: int) -> float:
        """Epsilon after taking part in so many rounds."""
        spent = replace(self.one, count=rounds * self.one.count)
        return epsilon_of([spent], self.noise.delta)

    @cached_property
    def rounds(self) -> int:
        """How many rounds are run: as many as keep every silo within `stop_at`."""
        planned = self.schedule.rounds
        if self.noise.stop_at is None:
            return len(planned)
        allowed = rounds_within(self.one, self.noise.delta, self.noise.stop_at, most=len(planned))
        taken = Counter[int]()
        for index, silos in enumerate(planned):
            taken.update(silos)
            if max(taken.values(), default=0) > allowed:
                return index
        return len(planned)

    @property
    def most(self) -> int:
        """The largest number of run rounds in which one silo takes part."""
        return max(self.taken.values(), default=0)

    @property
    def taken(self) -> Counter[int]:
        """In how many run rounds each silo takes part."""
        return _taken(self.schedule.rounds[: self.rounds])

    @property
    def most_planned(self) -> int:
        """Like `most`, of all planned rounds."""
        return max(_taken(self.schedule.rounds).values(), default=1)

    @property
    def each(self) -> int:
        """m: how many silos take part in a round."""
        return min(map(len, self.schedule.rounds), default=self.schedule.silos)

    @property
    def honest(self) -> int:
        """H: how many silos of a round add noise that an observer does not know."""
        return honest_silos(self.each, self.colluders)

    @property
    def stops(self) -> str:
        """Why fewer rounds than planned are run, in one line; empty if all are."""
        if self.rounds == len(self.schedule.rounds):
            return ""
        return (
            f"keylock.noise.stop_at: training ends after {self.rounds} of "
            f"{len(self.schedule.rounds)} rounds, which cost epsilon {self.costs(self.most):.3g}; "
            f"one more would pass {self.noise.stop_at:g}"
        )

    @property
    def summary(self) -> str:
        """The guarantee of the noise, in one line."""
        noise = self.noise
        sum_of = f"the sum of {self.each} silos without that of {self.each - self.honest}"
        if noise.steps > 1:
            sum_of = "each silo's sum of clipped gradients"
        rounds = f"{self.rounds} round{'s' * (self.rounds != 1)}"
        if self.most != self.rounds:
            rounds += f", of which a silo takes part in {self.most} at most,"
        return (
            f"keylock.noise: multiplier {self.multiplier:.4g}, deviation "
            f"{self.multiplier * noise.clip:.4g} in {sum_of}; {rounds} cost epsilon "
            f"{self.costs(self.most):.3g} at delta {noise.delta:g} (unit: {noise.unit})"
        )

    def ratio(self, numbers: int) -> float | None:
        """`noise_over_signal` under `unit: silo`; else None, for want of all silos' examples."""
        return self.noise_over_signal(numbers) if self.noise.unit == "silo" else None

    def noise_over_signal(self, numbers: int, examples: int = 0) -> float:
        """The length of the noise in the average, divided by the clip.

        Without the noise of the other silos, the sum has deviation z clip in each number; with all
        of it ``z clip sqrt(m / H)``. The average has 1/m of that, and over d numbers the length
        ``sqrt(d) z clip sqrt(m / H) / m``. The signal is the average of clipped updates that all
        point the same way, the best case, which is as long as the clip. m orthogonal updates
        average to ``clip / sqrt(m)`` only.

        Under `unit: example` it is that of one step, with the ``rate n`` examples of a batch in
        place of the m silos. With several steps a round each silo adds all of the noise to its own
        sum.

        Args:
            numbers: d, how many numbers are noised.
            examples: n, of all silos together, under `unit: example`.

        Example:
            >>> from .noise_config import NoiseConfig
            >>> noise = NoiseConfig(clip=1, delta=1e-5, multiplier=2.6)
            >>> thirty = Schedule(30, (tuple(range(30)),) * 20)
            >>> round(Budget.of(noise, 0, thirty).noise_over_signal(13_426), 1)
            10.2

        """
        units, silos = float(self.each), self.each / self.honest
        if self.noise.unit == "example":
            units = (self.noise.rate or 1.0) * examples
            silos = silos if self.noise.steps == 1 else self.each
        return math.sqrt(numbers * silos) * self.on_updates / units

    def check_left(self, page: Page, silo: int, done: int) -> None:
        """Check, before a silo trains, that its budget covers the rest of this job.

        Args:
            page: of its ledger.
            silo: its index.
            done: how many rounds of this job have ended.

        Raises:
            ConfigError: naming what was spent, and how many rounds fit.

        """
        stop_at, delta = self.noise.stop_at, self.noise.delta
        if stop_at is None:
            return
        left = sum(silo in silos for silos in self.schedule.rounds[done : self.rounds])
        fit = rounds_within(self.one, delta, stop_at, spent=page.spent, most=left)
        if fit < left:
            raise ConfigError(
                f"keylock.noise.stop_at: silo {silo} has spent epsilon "
                f"{epsilon_of(page.spent, delta):.3g} of {stop_at:g} in {page.rounds} rounds, as "
                f"its vault says; of {left} more {fit} fit: lower comm_round, or raise stop_at"
            )


def honest_silos(silos: int, colluders: int) -> int:
    """How many silos of a round add noise that an observer does not know.

    Colluding silos know their own noise, and so does a silo that observes alone.

    Raises:
        ConfigError: there are none.

    Example:
        >>> honest_silos(10, 3), honest_silos(3, 0)
        (7, 2)

    """
    left = silos - max(1, colluders)
    if left < 1:
        raise ConfigError(
            f"keylock.noise: of {silos} silos in a round {max(1, colluders)} know their own "
            "noise, and none is left against them: declare fewer colluders, or take more silos"
        )
    return left


def check_examples(noise: NoiseConfig, number: float) -> None:
    """Check, in a silo, that delta is below one over its number of examples.

    Raises:
        ConfigError: it is not.

    """
    if noise.unit == "example":
        _check_delta(noise.delta, number, "examples")


def ratio_in_words(ratio: float, unit: str = "silo") -> str:
    """Explain the ratio of noise to signal.

    Example:
        >>> ratio_in_words(0.25)
        'noise over signal: 0.25, the noise in an average over a clipped update'

    """
    of, clipped = ("an average", "update") if unit == "silo" else ("a step", "gradient")
    said = f"noise over signal: {ratio:.3g}, the noise in {of} over a clipped {clipped}"
    if ratio <= 1:
        return said
    if unit == "example":
        return f"{said}: a larger rate, more examples or fewer numbers make it less"
    return (
        f"{said}: a round is more noise than update; more silos, fewer numbers (freeze layers, or "
        "LoRA) or unit: example make it less"
    )


def _taken(rounds: Iterable[Iterable[int]]) -> Counter[int]:
    """In how many of these rounds each silo takes part."""
    return Counter(silo for silos in rounds for silo in silos)


def _check_delta(delta: float, number: float, what: str) -> None:
    if not delta * number < 1:
        # the number of examples is not named: the line reaches whoever started the job
        many = f"{number:g} {what}" if what == "silos" else f"this silo's {what}"
        raise ConfigError(
            f"keylock.noise.delta: {delta:g} is not allowed with {many}: it must be below 1 over "
            "their number, or revealing one of them entirely would be within it"
        )
