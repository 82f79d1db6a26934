"""What an update of a point's silo gives away, to attackers who know how silos protect themselves.

Each update is one plain SGD step of one silo. The attacks are the package's own, run as its audit
runs them; the truth comes in where they are scored. Update u is silo u % silos' step on images of
its own.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from accuracy import fit_lock
from attackers import Attacker, Effort
from files import load, save
from points import Point, is_rotated, transforms_at_clip
from splits import Setting, first_model, parts, pictures
from torch import Tensor, nn
from training import global_state, silo_locks

from fedml_keylock.builtin import keylock
from fedml_keylock.errors import ConfigError, KeyLockError
from fedml_keylock.evaluation.audit import Protection, Subject, probe
from fedml_keylock.evaluation.audit.crew import Crew
from fedml_keylock.evaluation.audit.plan import Task, tasks_of
from fedml_keylock.evaluation.audit.score import baselines, joined, score
from fedml_keylock.evaluation.audit.training import train_update
from fedml_keylock.evaluation.audit.work import Store
from fedml_keylock.inversion import (
    Knowledge,
    PublicData,
    Secrets,
    Transform,
)
from fedml_keylock.locks import lock_model, secret_variables, unlock_model
from fedml_keylock.locks.entropy import seeded_uniform
from fedml_keylock.tensors import fingerprint
from fedml_keylock.types import ClientUpdate

FLOOR = "no gradient"


@dataclass(frozen=True)
class Knowing(Task):
    """A task whose attacker knows what a rival does to an update, and does it to his own too."""

    transforms: tuple[Transform, ...] = field(default=(), repr=False)

    def knowledge(self) -> Knowledge:
        """The attacker's."""
        return replace(super().knowledge(), transforms=self.transforms)

    @property
    def id(self) -> str:
        """Of all that the result depends on."""
        return fingerprint((super().id, self.transforms), [])


@dataclass(frozen=True)
class Told(Task):
    """A task whose attacker simulates updates with the silos' own locks, which are `given`."""

    def knowledge(self) -> Knowledge:
        """The attacker's."""
        known = super().knowledge()
        assert known.secrets is not None
        return replace(known, secrets=Secrets(known.secrets.names, draw=self.drawn))

    def drawn(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """As many of them at random: whose update it is he does not use."""
        given = self.given or {}
        several = len(next(iter(given.values())))
        rows = torch.randint(several, (count,), generator=generator, device=generator.device)
        return {name: value[rows.to(value.device)] for name, value in given.items()}


@dataclass(frozen=True)
class Part:
    """One attacker's result file: what is to be done for it, and what it is scored with."""

    title: str
    path: Path
    settings: Mapping[str, Any]
    subject: Subject = field(repr=False)
    tasks: Mapping[str, Task] = field(repr=False)


def file_of(folder: Path, stage: str, batch: int, name: str) -> Path:
    """Where a result is."""
    return folder / "leakage" / f"{stage}-batch{batch}-{name.replace(' ', '-')}.json"


def settings_of(attacker: Attacker, effort: Effort) -> dict[str, Any]:
    """What a result is bound to, beside its folder."""
    return {**floor_settings(effort), "attack": str(attacker.attack(effort))}


def floor_settings(effort: Effort) -> dict[str, Any]:
    """What the attacked updates are bound to, beside their folder."""
    return {"images": effort.images, "rate": effort.rate}


def attack(
    point: Point,
    setting: Setting,
    folder: Path,
    effort: Effort,
    wanted: Sequence[tuple[Attacker, str, int]],
    *,
    crew: Crew,
    tell: Callable[[str], None],
) -> None:
    """Run every attacker who has no result, all of them at once, and the baselines.

    Undefended baselines at untrained weights are the same for all points, which share the store of
    their tasks.
    """
    store = Store(folder.parent / "work")
    left: list[Part] = []
    for attacker, stage, batch in wanted:
        path = file_of(folder, stage, batch, attacker.name)
        settings, title = settings_of(attacker, effort), f"{attacker.name}, {stage}, batch {batch}"
        if load(path, settings) is not None:
            continue
        subject = _subject(point, setting, folder, effort, stage, batch, attacker)
        _floor(subject, file_of(folder, stage, batch, FLOOR), effort)
        try:
            tasks = _tasks(point, subject, attacker, effort, setting.seed)
        except KeyLockError as error:
            _refuse(path, settings, title, str(error), tell)
            continue
        left.append(Part(title, path, settings, subject, {task.id: task for task in tasks}))
    # what two rows have in common is done once
    todo = {name: task for part in left for name, task in part.tasks.items() if not store.has(name)}
    names, began = list(todo), time.monotonic()
    refused: dict[str, str] = {}

    def finish() -> None:
        for part in list(left):
            reasons = [refused[name] for name in part.tasks if name in refused]
            if reasons:
                _refuse(part.path, part.settings, part.title, reasons[0], tell)
            elif all(store.has(name) for name in part.tasks):
                result = _scored(part, store)
                save(part.path, result, part.settings)
                took = f"after {time.monotonic() - began:.0f} s"
                tell(f"{part.title}: {result['ssim_aligned']:.3f} aligned SSIM ({took})")
            else:
                continue
            left.remove(part)

    def done(index: int, result: bytes | str) -> None:
        if isinstance(result, str):
            refused[names[index]] = result
        else:
            store.write(names[index], result)
        finish()

    finish()
    crew.run([(todo[name], store.checkpoint(name)) for name in names], done)


def _refuse(
    path: Path, settings: Mapping[str, Any], title: str, reason: str, tell: Callable[[str], None]
) -> None:
    """An attack that cannot be run: said, and tried again."""
    tell(f"{title}: not run: {reason}")
    save(path, {"refused": reason}, settings)


def _scored(part: Part, store: Store) -> dict[str, Any]:
    """The mean over the images, and each one's; an image without any picture is counted."""
    result = joined([store.read(name) for name in part.tasks])
    scored = score(result, part.subject.images, part.subject.labels)
    found: dict[str, Any] = {name: float(value.nanmean()) for name, value in scored.metrics.items()}
    return found | {
        "cost": float(scored.cost.nanmean()),
        "lost": int(scored.cost.isnan().sum()),
        "each": [round(one, 4) for one in scored.metrics["ssim_aligned"].flatten().tolist()],
    }


def _floor(subject: Subject, path: Path, effort: Effort) -> None:
    """What the same images' kind gives with no gradient at all."""
    settings = floor_settings(effort)
    if load(path, settings) is None:
        truth, labels = subject.images.flatten(0, 1), subject.labels.flatten()
        rows = baselines(truth, labels, subject.public, stage=subject.stages[0], round_index=0)
        means = {
            row.attack: {name: value["mean"] for name, value in row.metrics.items()} for row in rows
        }
        save(path, means, settings)


def _rows(setting: Setting, count: int, batch: int) -> tuple[Tensor, Tensor]:
    """Rows of `pictures`: those attacked, update by update, and those that are public."""
    silos, rest = parts(setting)
    rows = []
    for update in range(count // batch):
        turn = (update // setting.silos) * batch
        rows.append(silos[update % setting.silos][turn : turn + batch])
    if not rows or min(len(some) for some in rows) < batch:
        raise ConfigError(f"--images {count}: too few, or too many, for updates of {batch}")
    return torch.cat(rows), rest


def _subject(
    point: Point,
    setting: Setting,
    folder: Path,
    effort: Effort,
    stage: str,
    batch: int,
    attacker: Attacker,
) -> Subject:
    """The updates that an attacker has."""
    model = first_model(setting.net, setting.seed)
    if stage == "trained":
        state = global_state(folder)
        model.load_state_dict(state)
        if is_rotated(point):  # who knows more than the server does: the weights that silos have
            model = silo_locks(point, setting, folder)[1](state, 0, None)
            unlock_model(model)
    images, labels = pictures(setting.data)
    attacked, rest = _rows(setting, effort.images, batch)
    grouped = stage == "trained" or attacker.shared
    subject = probe(
        model,
        images[attacked],
        labels[attacked],
        protection=None
        if point.lock is None
        else _protection(point, setting, folder, model, stage, grouped),
        public=PublicData(images[rest], labels[rest]),
        batch=batch,
        learning_rate=effort.rate,
        stage=stage,
        seed=setting.seed,
    )
    updates = subject.updates
    if grouped:
        updates = tuple(replace(u, silo=i % setting.silos) for i, u in enumerate(updates))
    if point.rival and attacker.variant == "own":
        draw = torch.Generator().manual_seed(104_729 * (setting.seed + 1))
        updates = tuple(_perturbed(update, model, point, draw) for update in updates)
    subject = replace(subject, updates=updates)
    if attacker.others:
        return _that_moved(_sums_of_others(subject, point))
    return _that_moved(_with_fitted_lock(subject, point, setting) if attacker.fits else subject)


def _sums_of_others(subject: Subject, point: Point) -> Subject:
    """What a silo has of the others, alone or with the server: the average without its own part.

    In each update's place there are as many silos as images, with one each, and the one that looks.
    """
    defense = keylock(point.lock or {})
    assert subject.public is not None
    found = []
    for row, update in enumerate(subject.updates):
        images, labels = subject.images[row], subject.labels[row]
        own = (subject.public.images[:1], subject.public.labels[:1])
        parts = [own, *zip(images.split(1), labels.split(1), strict=True)]
        made = [
            train_update(subject.model, *part, learning_rate=update.learning_rate) for part in parts
        ]
        average = defense.rehearse(made[0].before, [(1.0, one.after) for one in made])[1]
        count = len(parts)
        rest = {
            name: ((count * value.double() - made[0].after[name]) / (count - 1)).to(value)
            for name, value in average.items()
        }
        found.append(replace(update, before=made[0].before, after=rest))
    return replace(subject, updates=tuple(found), defense="none", attacker_model=None, secrets=None)


def _with_fitted_lock(subject: Subject, point: Point, setting: Setting) -> Subject:
    """In place of the silos' private state that of a lock fitted on everything that is public."""
    assert subject.attacker_model is not None
    assert subject.public is not None
    draw = torch.Generator().manual_seed(15_487_469 * (setting.seed + 1))
    fitted, _ = fit_lock(subject.attacker_model, draw, subject.public, subject.public)
    count = len(subject.updates)
    secrets = {name: value.expand(count, *value.shape) for name, value in fitted.items()}
    return replace(subject, secrets=secrets)


def _that_moved(subject: Subject) -> Subject:
    """Without updates that changed nothing: there is nothing in them, with any lock and without."""
    moved = [
        row
        for row, update in enumerate(subject.updates)
        if any(not torch.equal(update.before[name], update.after[name]) for name in update.after)
    ]
    secrets = subject.secrets
    return replace(
        subject,
        updates=tuple(subject.updates[row] for row in moved),
        images=subject.images[moved],
        labels=subject.labels[moved],
        stages=tuple(subject.stages[row] for row in moved),
        secrets=secrets and {name: value[moved] for name, value in secrets.items()},
    )


def _protection(
    point: Point, setting: Setting, folder: Path, model: nn.Module, stage: str, grouped: bool
) -> Protection:
    """Silos with fresh locks, or with those that they have trained.

    Args:
        point: with a lock.
        setting: of the job.
        folder: of the point.
        model: the public one.
        stage: of its weights.
        grouped: whether there are as many locks as silos; or else each update's is another one.

    """
    defense, own = silo_locks(point, setting, folder)
    turns = cycle(range(setting.silos))
    seed = 15_485_863 * (setting.seed + 1)

    def fresh(plain: nn.Module, draw: torch.Generator) -> tuple[nn.Module, Mapping[str, Tensor]]:
        turn = next(turns)
        if stage == "trained":
            locked = own(plain.state_dict(), turn, None)
        else:
            locked = deepcopy(plain)
            if grouped:
                draw = torch.Generator().manual_seed(seed + turn)
            lock_model(locked, defense.config, uniform=seeded_uniform(draw))
        return locked, secret_variables(locked)

    return Protection(defense.title, defense.attacker_model(model), fresh)


def _perturbed(
    update: ClientUpdate, model: nn.Module, point: Point, draw: torch.Generator
) -> ClientUpdate:
    """What a rival sends instead, with nothing left of earlier rounds."""
    names = [name for name, _ in model.named_parameters()]
    sent = {name: update.before[name] - update.after[name] for name in names}
    for transform in transforms_at_clip(point.rival):
        sent = transform.apply(sent, draw)
    changed = {name: update.before[name] - sent[name] for name in names}
    return replace(update, after={**update.after, **changed})


def _tasks(
    point: Point, subject: Subject, attacker: Attacker, effort: Effort, seed: int
) -> list[Task]:
    """The audit's own tasks, of this one row."""
    level, variant = attacker.level, subject.defense
    if attacker.variant == "twin":
        level, variant = "oblivious", "none"
    elif subject.attacker_model is None and level != "simulating":
        level = "oblivious"  # there is no lock to know of
    tasks = [
        task
        for task in tasks_of(subject, {"attack": attacker.attack(effort)}, [level], seed=seed)
        if (task.trial.variant, task.trial.level) == (variant, level)
    ]
    if attacker.told:
        return [Told(**{**vars(task), "given": subject.secrets}) for task in tasks]
    knows = attacker.knows and attacker.level != "oblivious"
    if point.rival and knows:
        known = transforms_at_clip(point.rival)
        return [Knowing(**vars(task), transforms=known) for task in tasks]
    return tasks
