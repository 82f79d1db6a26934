"""`fedml-keylock privacy`: computes the privacy of a job's noise before it runs."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import FILE

if TYPE_CHECKING:
    from ..locks import KeyLockConfig
    from ..privacy.budget import Budget
    from ..types import Schedule

__all__ = ["privacy"]

MOST_NAMED = 8
"""Largest number of silos that a line names."""


@click.command()
@click.argument("job", type=FILE)
@click.option("--epsilon", type=float, help="Compute the multiplier that this epsilon needs.")
@click.option("--rounds", type=click.IntRange(min=1), help="In place of comm_round.")
@click.option("--silos", type=click.IntRange(min=1), help="Assume this many silos in every round.")
@click.option(
    "--model",
    "builder",
    metavar="MODULE:CALLABLE",
    help="Makes the job's model, as for check; needed for noise over signal.",
)
@click.option(
    "--examples",
    type=click.IntRange(min=1),
    help="Examples of all silos together; needed for noise over signal with unit: example.",
)
def privacy(
    job: Path,
    epsilon: float | None,
    rounds: int | None,
    silos: int | None,
    builder: str | None,
    examples: int | None,
) -> None:
    """Compute the privacy of a job's noise before the job runs.

    \b
    epsilon             over all rounds at the YAML's delta, for each silo by
                        the rounds in which FedML selects it. The smaller, the
                        less the averages tell whether a silo (or an example)
                        took part. 1 is strong, 8 is common in deep learning,
                        and values far above it claim little.
    multiplier          standard deviation of the noise in the sum over
                        keylock.noise.clip; --epsilon 4, or epsilon: 4 in the
                        YAML, solves for it.
    stop_at             the number of rounds within that budget.
    spent               epsilon of earlier jobs, from the vault's ledgers.
    noise over signal   norm of the noise in an average over that of a clipped
                        update, if all silos' updates are aligned. Above 1 a
                        round is more noise than update. With unit: example
                        it is of one step, over a clipped gradient. In T steps
                        noise grows by sqrt(T), and gradients by up to T.

    \b
    fedml-keylock privacy fedml_config.yaml --model main:Net
    fedml-keylock privacy fedml_config.yaml --epsilon 4 --silos 1000
    """  # noqa: D301  # click's mark for lines that are to stay as they are
    from ..errors import ConfigError
    from ..privacy.accountant import multiplier_for
    from ..privacy.budget import Budget, check_examples
    from .job_file import read_job

    if epsilon is not None and not 0 < epsilon < math.inf:
        raise ConfigError(f"--epsilon: {epsilon:g} is not allowed: use a number above 0")
    args, section = read_job(job)
    config = _noised(section, job)
    assert config.noise is not None
    noise = config.noise
    schedule = _schedule(args, job, rounds=rounds, silos=silos)
    budget = Budget.of(noise, config.colluders or 0, schedule)
    if examples:
        check_examples(noise, examples / schedule.silos)
    numbers = _numbers(config, builder)
    click.echo(
        f"{schedule.silos} silos, {budget.each} of them in each of {len(schedule.rounds)} rounds, "
        f"of which {max(1, config.colluders or 0)} may collude"
    )
    click.echo(budget.summary)
    _tell_silos(budget)
    if noise.stop_at is not None:
        click.echo(f"stop_at {noise.stop_at:g}: {budget.rounds} of {len(schedule.rounds)} rounds")
    _tell_ratio(budget, numbers, examples or 0)
    if epsilon is not None:
        one, count = budget.one, budget.most_planned
        found = multiplier_for(epsilon, noise.delta, rate=one.rate, count=count * one.count)
        said = f"epsilon {epsilon:g} in all {len(schedule.rounds)} rounds needs multiplier "
        other = replace(budget, multiplier=found).ratio(numbers) if numbers else None
        ratio = "" if other is None else f"; noise over signal {other:.3g}"
        click.echo(f"{said}{found:.4g}{ratio}")
    if _tell_spent(config.vault, budget):
        sys.exit(1)


def _noised(section: Any, job: Path) -> KeyLockConfig:
    from ..errors import ConfigError
    from ..locks import KeyLockConfig

    config = KeyLockConfig.from_mapping(section)
    if config.noise is None:
        raise ConfigError(
            f"{job}: it has no keylock.noise: what averages tell is not bounded; add, for example, "
            "noise: {clip: 1.0, epsilon: 8, delta: 1e-5} and colluders: 1"
        )
    return config


def _schedule(args: Any, job: Path, *, rounds: int | None, silos: int | None) -> Schedule:
    from ..errors import ConfigError
    from ..host.job_configuration import schedule_of

    if rounds is not None:
        args.comm_round = rounds
    if silos is not None:
        args.client_num_in_total = args.client_num_per_round = silos
    try:
        found = schedule_of(args)
    except AttributeError as error:
        raise ConfigError(f"{job}: {error.name}: needed") from None
    except (TypeError, ValueError):
        raise ConfigError(
            f"{job}: client_num_in_total, client_num_per_round and comm_round must be whole "
            "numbers, and the first no smaller than the second"
        ) from None
    if not found.rounds:
        raise ConfigError(f"{job}: comm_round: it trains no round")
    return found


def _numbers(config: KeyLockConfig, builder: str | None) -> int:
    """Number of values that get noise; 0 if no model is named."""
    from ..locks.model import make_lock
    from .job import build_model

    if builder is None:
        return 0
    model, lock = build_model(builder), make_lock(config)
    lock.plan(model)
    return lock.noised_numbers(model)


def _tell_silos(budget: Budget) -> None:
    """Print each silo's participations, if they differ."""
    groups = defaultdict[int, list[int]](list)
    for silo in range(budget.schedule.silos):
        groups[budget.taken.get(silo, 0)].append(silo)
    if len(groups) == 1:
        return
    for rounds, silos in sorted(groups.items(), reverse=True):
        named = ", ".join(map(str, silos[:MOST_NAMED]))
        more = f" and {len(silos) - MOST_NAMED} more" if len(silos) > MOST_NAMED else ""
        click.echo(f"  in {rounds} of them, epsilon {budget.costs(rounds):.3g}: silo {named}{more}")


def _tell_ratio(budget: Budget, numbers: int, examples: int) -> None:
    from ..privacy.budget import ratio_in_words

    unit = budget.noise.unit
    if unit == "example" and not (numbers and examples):
        click.echo(
            "noise over signal: with unit: example it takes the numbers of parameters and of all "
            "silos' examples: name --model and --examples"
        )
    elif not numbers:
        click.echo("noise over signal: it takes the number of parameters: name --model")
    else:
        ratio = budget.noise_over_signal(numbers, examples)
        click.echo(f"{ratio_in_words(ratio, unit)} ({numbers:,} numbers)")


def _tell_spent(vault: Path, budget: Budget) -> bool:
    """Print what earlier jobs spent, and whether too little is left for this job."""
    from ..privacy.accountant import epsilon_of
    from ..privacy.ledger import ledgers_in

    noise, before = budget.noise, ledgers_in(vault, budget.noise.unit)
    too_much = False
    if not before:
        click.echo(f"spent: nothing, by the vault {vault}")
    for ledger in before:
        page = ledger.read()
        spent = epsilon_of(page.spent, noise.delta)
        more = replace(budget.one, count=budget.taken.get(ledger.silo, 0) * budget.one.count)
        after = epsilon_of([*page.spent, more], noise.delta)
        over = noise.stop_at is not None and after > noise.stop_at
        too_much |= over
        click.echo(
            f"spent: silo {ledger.silo}: epsilon {spent:.3g} in {page.rounds} rounds of earlier "
            f"jobs, {after:.3g} with this one"
            + (f": above stop_at {noise.stop_at:g}, the job will not begin" if over else "")
        )
    return too_much
