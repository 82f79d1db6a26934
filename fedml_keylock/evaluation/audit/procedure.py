"""Runs an audit: plans the tasks, runs them, scores the results, writes the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ...errors import AttackError
from ...inversion import Attack, PublicData
from ..leakage import NOT_SCORED, PUBLIC_NORM, CostCurve, LeakageRow
from ..report import Gallery, LeakageReport
from .crew import Alone, Crew, Job
from .plan import Task, tasks_of
from .score import METRICS, Metric, Scored, baselines, joined, matched, row_of, score
from .subject import Subject
from .sums import groups_of, spread
from .trial import Trial
from .work import Result, Store

__all__ = ["NOT_SCORED", "audit"]

_SUMS = (
    "averages of updates of one round, by the samples that silos told, of which the attacker takes "
    "each to weigh the same; without a defense it is the same sum, but for the lock's rounding and "
    "noise"
)
MOST_SHOWN = 8
"""Number of images in a gallery."""


def audit(
    subjects: Subject | Sequence[Subject],
    attacks: Mapping[str, Attack],
    levels: Sequence[str] = ("oblivious", "adaptive"),
    *,
    output: Path,
    sums: Sequence[int] = (),
    crew: Crew | None = None,
    seeds: int = 1,
    chunk: int | None = None,
    metrics: Mapping[str, Metric] = METRICS,
    job: Mapping[str, Any] | None = None,
    on_error: Callable[[str, AttackError], None] | None = None,
    progress: bool = False,
) -> LeakageReport:
    """Run every attack and control on the subjects, and score the results.

    Each reconstruction is a task, and its result a file in ``output/work``: an interrupted audit,
    run again, continues. The workers never have the truth.

    Args:
        subjects: one for every seed, of the same images; or one for all.
        attacks: attacks by name.
        levels: levels of knowledge; the oracle is added if private state is known.
        output: folder for the tasks' results.
        sums: numbers of silos in the averages to attack beside single updates.
        crew: the workers, see `muster`; by default this process.
        seeds: number of runs, with a single subject.
        chunk: updates in a task; by default chosen by the model's size. Figures depend on it.
        metrics: name to ``metric(images, truth) -> (n,)``.
        job: facts on the run for the report, in plain values.
        on_error: called once for each reason why an attack cannot run; the others go on.
        progress: show a progress bar on stderr.

    Raises:
        AttackError: the parts do not fit together, or no attack could be run.

    Example:
        >>> import tempfile
        >>> from fedml_keylock.evaluation.audit import probe
        >>> from fedml_keylock.inversion import inverting_gradients
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 3))
        >>> subject = probe(net, torch.rand(3, 1, 12, 12), torch.tensor([0, 1, 2]))
        >>> attacks = {"inverting_gradients": inverting_gradients(steps=5)}
        >>> report = audit(subject, attacks, output=Path(tempfile.mkdtemp()))
        >>> [row.attack for row in report.leakage][-1]
        'inverting_gradients'

    """
    began = time.monotonic()
    runs = [subjects] * seeds if isinstance(subjects, Subject) else list(subjects)
    if not runs or not attacks or not levels:
        raise AttackError("an audit needs a subject, an attack and a level of knowledge")
    tasks = [
        task
        for seed, subject in enumerate(runs)
        for task in tasks_of(subject, attacks, levels, sums=sums, seed=seed, chunk=chunk)
    ]
    names = [task.id for task in tasks]
    store = Store(output / "work")
    failures = _work(tasks, names, store, crew or Alone(), progress=progress)
    refusals = dict.fromkeys((trial.attack, reason) for trial, reason in failures.items())
    if on_error is not None:
        for attack, reason in refusals:
            on_error(attack, AttackError(reason))
    parts: dict[Trial, dict[int, list[str]]] = {}
    for task, name in zip(tasks, names, strict=True):
        parts.setdefault(task.trial, {}).setdefault(task.seed, []).append(name)
    if not parts.keys() - failures:
        reasons = "; ".join(f"{attack}: {reason}" for attack, reason in refusals)
        raise AttackError("no attack could be run" if on_error is not None else reasons)
    results = {
        trial: [_read(store, found, runs[seed]) for seed, found in made.items()]
        for trial, made in parts.items()
        if trial not in failures
    }
    shown = _scaled(runs[0])
    rows, lost = _rows(shown, results, metrics)
    facts = {
        **(job or {}),
        "images": runs[0].images.shape[:2].numel(),
        "loss": str(runs[0].loss),
        "seeds": len(runs),
        "controls": _controls(runs[0], tuple(parts)),
        "seconds": round(time.monotonic() - began),
    }
    if sums:
        facts["sums"] = _SUMS
    if failures:
        facts["not run"] = {trial.title: reason for trial, reason in failures.items()}
    if lost:
        facts[NOT_SCORED] = lost
    originals, galleries = _galleries(shown, results)
    curves = [_curve(trial, runs[0], attacks[trial.attack]) for trial, runs in results.items()]
    return LeakageReport({}, rows, originals, galleries, facts, costs=curves)


def _scaled(subject: Subject) -> Subject:
    """The subject with all its pictures scaled to [0, 1]."""
    public = subject.public
    if public is not None:
        public = PublicData(subject.scaled(public.images), public.labels)
    images = subject.scaled(subject.images)
    return replace(subject, images=images, public=public, bounds=(0.0, 1.0))


def _work(
    tasks: Sequence[Task], names: Sequence[str], store: Store, crew: Crew, *, progress: bool
) -> dict[Trial, str]:
    """Run the tasks that have no result yet; returns the trials that cannot run."""
    todo = [i for i, name in enumerate(names) if not store.has(name)]
    failures: dict[Trial, str] = {}
    jobs: list[Job] = [(tasks[i], store.checkpoint(names[i])) for i in todo]
    with tqdm(
        total=len(tasks),
        initial=len(tasks) - len(todo),
        desc="audit",
        unit="task",
        leave=False,
        disable=not progress,
    ) as bar:

        def done(index: int, made: bytes | str) -> None:
            place = todo[index]
            if isinstance(made, str):
                failures.setdefault(tasks[place].trial, made)
            else:
                store.write(names[place], made)
            bar.update()

        crew.run(jobs, done)
    return failures


def _read(store: Store, names: Sequence[str], subject: Subject) -> Result:
    """The joined result of a trial's tasks in one run, pictures on [0, 1]."""
    return joined([store.read(name).mapped(subject.scaled) for name in names])


def _rows(
    subject: Subject, results: Mapping[Trial, Sequence[Result]], metrics: Mapping[str, Metric]
) -> tuple[list[LeakageRow], dict[str, int]]:
    """Baselines, a row for each trial and stage, and the count of updates without a picture."""
    rows: list[LeakageRow] = []
    lost: dict[str, int] = {}
    scored: dict[Trial, list[Scored]] = {}
    for trial, runs in results.items():
        groups = _groups(subject, trial)
        whole, marks = (_grouped(part, groups) for part in (subject.images, subject.labels))
        ones = [score(run, whole, marks, metrics) for run in runs]
        count = sum(int(one.cost.isnan().sum()) for one in ones)
        if count:
            lost[trial.title] = count
        scored[trial] = [_by_update(one, groups, len(subject.updates)) for one in ones]
    for stage in dict.fromkeys(subject.stages):
        chosen = torch.tensor([one == stage for one in subject.stages])
        places = [subject.updates[row].round for row in chosen.nonzero().flatten().tolist()]
        place = min(places) if stage == "untrained" else max(places)
        truth, labels = subject.images[chosen].flatten(0, 1), subject.labels[chosen].flatten(0, 1)
        rows += baselines(truth, labels, subject.public, metrics, stage=stage, round_index=place)
        for trial, ones in scored.items():
            row = row_of(trial, ones, chosen, stage=stage, round_index=place)
            if row is not None:
                rows.append(row)
    return rows, lost


def _galleries(
    subject: Subject, results: Mapping[Trial, Sequence[Result]]
) -> tuple[Tensor, list[Gallery]]:
    """Galleries of the first run's pictures at the first stage."""
    chosen = torch.tensor([one == subject.stages[0] for one in subject.stages])
    originals = subject.images[chosen].flatten(0, 1)[:MOST_SHOWN]
    galleries = []
    for trial, runs in results.items():
        groups = _groups(subject, trial)
        made = matched(runs[0], _grouped(subject.images, groups))
        every = spread(made, groups, len(subject.updates)).nan_to_num(0.0)
        shown = every[chosen].flatten(0, 1)[:MOST_SHOWN]
        galleries.append(Gallery(trial.title, shown, subject.stages[0]))
    return originals, galleries


def _groups(subject: Subject, trial: Trial) -> list[list[int]]:
    """For each reconstruction of a trial, the rows of its updates."""
    if trial.silos:
        return groups_of(subject, trial.silos)
    return [[row] for row in range(len(subject.updates))]


def _grouped(values: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """Group values of updates ``(u, n, ...)`` by average, ``(g, k * n, ...)``."""
    return values[torch.tensor(groups)].flatten(1, 2)


def _by_update(scored: Scored, groups: Sequence[Sequence[int]], updates: int) -> Scored:
    """The scores of averages by update; an average's cost is at its first update only."""
    cost = scored.cost.new_full((updates,), torch.nan)
    cost[[rows[0] for rows in groups]] = scored.cost
    return Scored({n: spread(v, groups, updates) for n, v in scored.metrics.items()}, cost)


def _curve(trial: Trial, run: Result, attack: Attack) -> CostCurve:
    """Cost curve of the first run's search, averaged over updates that did not diverge."""
    history = run.history[:, run.cost.isfinite()]
    costs = torch.where(history.isfinite(), history, torch.nan).nanmean(1)
    last = int(getattr(attack, "steps", len(costs)))
    steps = torch.linspace(0, last, len(costs)).round().int()
    known = costs.isfinite()
    return CostCurve(trial.title, tuple(steps[known].tolist()), tuple(costs[known].tolist()))


def _controls(subject: Subject, trials: Sequence[Trial]) -> str:
    if subject.attacker_model is None:
        return "public data alone; nothing is defended"
    norm = "public normalisation"
    if all(trial.variant != PUBLIC_NORM for trial in trials):
        norm += " left out: the lock brings no normalisation of its own"
    oracle = "key-knowing upper bound (self-test)"
    if subject.secrets is None:
        oracle = (
            "no key-knowing upper bound: the silos' private state was not given, so that failures "
            "prove nothing"
        )
    said = f"public data alone; undefended baseline; {norm}; {oracle}"
    if subject.public is None:
        said += "; no public data were given: each image's others stand in for them"
    return said
