"""Plans an audit: splits it into independent tasks, each with a reproducible name."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from itertools import product
from typing import Any

from torch import Tensor, nn

from ...errors import AttackError
from ...inversion import GRANTS, Attack, Knowledge, PublicData, check_known_levels
from ...tensors import fingerprint
from ...types import AttackerModel, ClientUpdate
from ..leakage import PUBLIC_NORM
from ..trials import knowledge_of, trials
from .controls import public_norm, recovered, undefended
from .shared_statistics import shared_statistics
from .subject import Rebuild, Subject
from .sums import sums_of
from .trial import Trial

__all__ = ["Task", "tasks_of"]

_PRIVATE = {"private state", "peer"}  # levels that need the vaults
_SMALL = 100_000  # parameters of a model up to which a batch of candidates is much faster


@dataclass(frozen=True)
class Task:
    """Everything that a worker on any host needs, without the truth.

    Attributes:
        trial: the trial that it is part of.
        seed: index of the run.
        rows: indices of the subject's updates.
        attack: the configured attack.
        updates: the updates of the rows.
        given: private state: of these updates for the oracle, of colluding silos for the insider.
        known: the attacker's other knowledge, as arguments of ``knowledge_of``.
        rebuild: makes the model and the attacker's model in another process.
        model: the public model.
        attacker_model: None without a defense.
        start: seed of the attacker's generator.

    """

    trial: Trial
    seed: int
    rows: tuple[int, ...]
    attack: Attack = field(repr=False)
    updates: tuple[ClientUpdate, ...] = field(repr=False)
    given: Mapping[str, Tensor] | None = field(repr=False)
    known: Mapping[str, Any] = field(repr=False)
    rebuild: Rebuild | None = field(repr=False)
    model: nn.Module = field(repr=False)
    attacker_model: AttackerModel | None = field(repr=False)
    start: int

    def knowledge(self) -> Knowledge:
        """The attacker's knowledge."""
        level = self.trial.level
        if self.attacker_model is not None and self.attacker_model.update_transform is not None:
            # a colluding silo's extra knowledge is in its updates
            level = "oracle" if "peer" in GRANTS[level] else level
        return knowledge_of(
            level, attacker_model=self.attacker_model, given=self.given, **self.known
        )

    @property
    def id(self) -> str:
        """Hash, 16 hex digits, of all that the result depends on, with this package's version."""
        public: PublicData | None = self.known.get("public")
        statistics = self.known.get("statistics") or {}
        settings = (
            version("fedml-keylock"),
            self.attack,
            self.trial,
            self.start,
            {n: value for n, value in self.known.items() if n not in ("public", "statistics")},
            str(self.model if self.attacker_model is None else self.attacker_model.model),
            [(update.learning_rate, update.silo, update.round) for update in self.updates],
        )
        tensors = [
            *(self.given or {}).values(),
            *([public.images, public.labels] if public else []),
            *(part for _, pair in sorted(statistics.items()) for part in pair),
        ]
        # many updates share the tensors of the state sent
        states = {id(state): state for u in self.updates for state in (u.before, u.after)}
        for state in states.values():
            tensors += [state[name] for name in sorted(state)]
        return fingerprint(settings, tensors)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        if self.rebuild is not None:
            state["model"], state["attacker_model"] = None, self.attacker_model is not None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["rebuild"] is not None:
            model, attacker_model = _rebuilt(pickle.dumps(state["rebuild"]))
            state["model"], state["attacker_model"] = (
                model,
                attacker_model if state["attacker_model"] else None,
            )
        vars(self).update(state)


@lru_cache(maxsize=1)
def _rebuilt(rebuild: bytes) -> tuple[nn.Module, AttackerModel | None]:
    """Build the models of a task; caches the last ones, which no attack changes."""
    made: Rebuild = pickle.loads(rebuild)  # noqa: S301  # pickled just now
    return made()


def tasks_of(
    subject: Subject,
    attacks: Mapping[str, Attack],
    levels: Sequence[str],
    *,
    sums: Sequence[int] = (),
    seed: int = 0,
    chunk: int | None = None,
) -> list[Task]:
    """The tasks of one run over a subject, the same on every worker.

    Args:
        subject: what is audited.
        attacks: attacks by name.
        levels: levels of knowledge; the oracle is added if private state is known.
        sums: numbers of silos in the averages to attack too.
        seed: index of the run, and seed of the attackers' generators.
        chunk: updates in a task; by default chosen by the model's size.

    Raises:
        AttackError: something that a level needs is missing, or an attack can run at none.
        ConfigError: there is no such level.

    """
    plain = undefended(subject)
    norm = public_norm(subject, plain)
    sent = {"none": plain, subject.defense: subject.updates}
    if norm is not None:
        sent[PUBLIC_NORM] = norm
    tasks = []
    for trial in _trials_of(subject, attacks, levels, control=norm is not None):
        attack, grants = attacks[trial.attack], GRANTS[trial.level]
        updates, groups = sent[trial.variant], [tuple(range(len(subject.updates)))]
        if subject.update_transform and grants & _PRIVATE:
            updates = recovered(subject, colluding="peer" in grants)
        elif "peer" in grants:
            groups = _by_peers(subject)
        # attacks that learn or pool over all updates run once
        whole = "public data" in attack.needs or "rounds" in grants
        for every in groups:
            size = len(every) if whole else chunk or _chunk_of(subject.model)
            for rows in (every[at : at + size] for at in range(0, len(every), size)):
                tasks.append(_task(subject, trial, attack, updates, rows, seed))
    return tasks + [
        task for silos in sums for task in _on_sums(subject, attacks, plain, silos, seed, chunk)
    ]


def _on_sums(
    subject: Subject,
    attacks: Mapping[str, Attack],
    plain: Sequence[ClientUpdate],
    silos: int,
    seed: int,
    chunk: int | None,
) -> Iterator[Task]:
    """Every attack on the averages of this many silos, which are read without a secret."""
    made = sums_of(subject, plain, silos)
    size = max(1, (chunk or _chunk_of(subject.model)) // silos)
    known = {"batch": silos * subject.batch, "training": made.training, "silos": silos}
    for (variant, updates), (name, attack) in product(made.updates.items(), attacks.items()):
        trial, rows = Trial(variant, name, "oblivious", silos), tuple(range(len(updates)))
        for at in range(0, len(rows), size):
            task = _task(subject, trial, attack, updates, rows[at : at + size], seed)
            yield replace(task, known={**task.known, **known}, attacker_model=None)


def _trials_of(
    subject: Subject, attacks: Mapping[str, Attack], levels: Sequence[str], *, control: bool
) -> list[Trial]:
    """Every attack on every variant, controls first.

    Public normalisation is a control only if it differs from the undefended baseline.
    """
    check_known_levels(levels)
    for level in ("oracle", "insider"):
        if subject.attacker_model is not None and subject.secrets is None and level in levels:
            raise AttackError(f"level {level!r} needs the silos' private state: name their vault")
    if subject.public is None and "simulating" in levels:
        raise AttackError("a simulating attacker needs public data: name a folder of pictures")
    wanted = [level for level in levels if level != "oracle"]
    plain = trials(attacks, wanted or ["oblivious"], defended=False)
    found = [Trial("none", name, level) for name, level in plain]
    if subject.attacker_model is None:
        return found
    if control:
        found += [Trial(PUBLIC_NORM, name, level) for name, level in plain if level == "oblivious"]
    if subject.secrets is not None:
        wanted.append("oracle")
    return found + [Trial(subject.defense, *one) for one in trials(attacks, wanted, defended=True)]


def _chunk_of(model: nn.Module) -> int:
    """Number of updates in a task: many for a small model, which runs faster on a batch of them."""
    return 8 if sum(parameter.numel() for parameter in model.parameters()) <= _SMALL else 2


def _by_peers(subject: Subject) -> list[tuple[int, ...]]:
    """Rows of updates of one silo and round, which have the same colluding silos."""
    groups: dict[tuple[int, int], list[int]] = {}
    for row, update in enumerate(subject.updates):
        groups.setdefault((update.round, update.silo), []).append(row)
    return [tuple(rows) for rows in groups.values()]


def _peers(subject: Subject, row: int) -> list[int]:
    """The other silos' updates of the same round."""
    own = subject.updates[row]
    found = [
        other
        for other, update in enumerate(subject.updates)
        if update.round == own.round and update.silo != own.silo
    ]
    if not found:
        raise AttackError(f"level 'insider' needs another silo's update of round {own.round}")
    return found


def _task(
    subject: Subject,
    trial: Trial,
    attack: Attack,
    updates: Sequence[ClientUpdate],
    rows: tuple[int, ...],
    seed: int,
) -> Task:
    given, statistics, grants = None, None, GRANTS[trial.level]
    if subject.secrets is not None and not subject.update_transform and grants & _PRIVATE:
        whose = _peers(subject, rows[0]) if "peer" in grants else list(rows)
        given = {name: value[whose] for name, value in sorted(subject.secrets.items())}
    if "statistics" in grants and subject.attacker_model is not None:
        statistics = shared_statistics(
            subject.attacker_model.model,
            [subject.attacker_model.read(updates[row]) for row in rows],
            subject.images[0],
        )
    return Task(
        trial=trial,
        seed=seed,
        rows=rows,
        attack=attack,
        updates=tuple(updates[row] for row in rows),
        given=given,
        known={
            "input_shape": subject.input_shape,
            "classes": subject.classes,
            "batch": subject.batch,
            "bounds": subject.bounds,
            "training": subject.training,
            "loss": subject.loss,
            "output_shape": subject.output_shape or None,
            "statistics": statistics,
            "public": subject.public if "public data" in grants else None,
        },
        rebuild=subject.rebuild,
        model=subject.model,
        attacker_model=None if trial.variant == "none" else subject.attacker_model,
        start=1009 * seed + rows[0],
    )
