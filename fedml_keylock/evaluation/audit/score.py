"""Scores results against the truth, and computes the baselines without any gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...inversion import PublicData
from ..interval import mean_interval
from ..leakage import BASELINE, NEAREST, LeakageRow, Worst
from ..matching import match
from ..metrics import psnr, psnr_aligned, ssim, ssim_aligned
from .trial import Trial
from .work import Result

__all__ = ["METRICS", "Metric", "Scored", "baselines", "joined", "matched", "row_of", "score"]

Metric = Callable[[Tensor, Tensor], Tensor]
METRICS: Mapping[str, Metric] = {
    "psnr": psnr,
    "ssim": ssim,
    "psnr_aligned": psnr_aligned,
    "ssim_aligned": ssim_aligned,
}
MOST_PUBLIC = 200
"""Number of public images among which the nearest is searched."""


@dataclass(frozen=True)
class Scored:
    """The scores of one run of a trial, for each image.

    NaN if every restart diverged, or a metric is undefined for an image.

    Attributes:
        metrics: name to ``(u, n)``; labels among it where each image has one class.
        cost: ``(u,)``.

    """

    metrics: Mapping[str, Tensor]
    cost: Tensor


def joined(parts: Sequence[Result]) -> Result:
    """Join the results of a trial's tasks, in the order of the updates."""
    steps = min(len(part.history) for part in parts)
    return Result(
        images=torch.cat([part.images for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        cost=torch.cat([part.cost for part in parts]),
        history=torch.cat([part.history[:steps] for part in parts], dim=1),
    )


def matched(result: Result, truth: Tensor) -> Tensor:
    """Images ``(u, n, c, h, w)`` in the truth's order, which a gradient does not hold.

    Example:
        >>> truth = torch.rand(1, 2, 1, 4, 4)
        >>> made = Result(truth.flip(1), torch.zeros(1, 2), torch.zeros(1), torch.zeros(1, 1))
        >>> torch.equal(matched(made, truth), truth)
        True

    """
    images = result.images.nan_to_num(0.0).clamp(0, 1)
    return torch.stack([one[match(one, true)] for one, true in zip(images, truth, strict=True)])


def score(
    result: Result, truth: Tensor, labels: Tensor, metrics: Mapping[str, Metric] = METRICS
) -> Scored:
    """Every metric of every image, for a truth ``(u, n, c, h, w)`` with labels ``(u, n, ...)``."""
    images = matched(result, truth).flatten(0, 1)
    lost = ~result.cost.isfinite()
    values = {name: metric(images, truth.flatten(0, 1)) for name, metric in metrics.items()}
    if labels.ndim == 2 and not labels.is_floating_point():
        values["label_accuracy"] = _labels_found(result.labels, labels).flatten()
    made = {
        name: value.float().reshape(labels.shape[:2]).masked_fill(lost[:, None], torch.nan)
        for name, value in values.items()
    }
    return Scored(made, torch.where(lost, torch.nan, result.cost.float()))


def row_of(
    trial: Trial, runs: Sequence[Scored], chosen: Tensor, *, stage: str, round_index: int
) -> LeakageRow | None:
    """A report's row: the mean over runs for each image, then mean and interval over images.

    There is a run for each seed. `chosen`, ``(u,)`` booleans, selects the updates of that stage and
    round. None if every restart of every update diverged, which is no merit of a defense.
    """
    every = {
        name: _over_runs([run.metrics[name][chosen].flatten() for run in runs])
        for name in runs[0].metrics
    }
    found = {name: values[~values.isnan()] for name, values in every.items()}
    if not all(map(len, found.values())):
        return None
    cost = _over_runs([run.cost[chosen] for run in runs])
    shape = next(iter(runs[0].metrics.values())).shape
    places = torch.arange(shape.numel()).view(shape)[chosen].flatten()
    return LeakageRow(
        attack=trial.attack,
        knowledge=trial.shown,
        defense=trial.variant,
        round=round_index,
        stage=stage,
        images=len(next(iter(found.values()))),
        metrics={name: mean_interval(values) for name, values in found.items()},
        cost=mean_interval(cost[~cost.isnan()]),
        seeds=len(runs),
        worst={name: _worst(name, values, places) for name, values in every.items()},
    )


def baselines(
    truth: Tensor,
    labels: Tensor,
    public: PublicData | None,
    metrics: Mapping[str, Metric] = METRICS,
    *,
    stage: str,
    round_index: int,
) -> Iterator[LeakageRow]:
    """Scores of public images without any gradient; an attack's score counts only above them.

    The truth is ``(m, c, h, w)`` with labels ``(m, ...)``. Baselines are the mean image, the mean
    of each class, the nearest image and a single colour, which resembles pictures of little
    contrast. Without public data, each image's baselines come from the other images of the truth.
    Stage and round are for the rows.
    """
    guesses: dict[str, list[Tensor]] = {}
    for index, (image, label) in enumerate(zip(truth, labels, strict=True)):
        if public is None:
            others = torch.arange(len(truth)) != index
            images, of = truth[others], labels[others]
        else:
            images, of = public.images, public.labels
        guesses.setdefault("one colour", []).append(torch.full_like(image, 0.5))
        if not len(images):
            continue
        mean = images.mean(0)
        guesses.setdefault("mean image", []).append(mean)
        if of.ndim == labels.ndim == 1 and not labels.is_floating_point():
            alike = images[of == label]
            guesses.setdefault("mean image of the class", []).append(
                alike.mean(0) if len(alike) else mean
            )
        some = images[:MOST_PUBLIC]
        near = ssim_aligned(some, image.expand_as(some)).argmax()
        guesses.setdefault(NEAREST, []).append(some[near])
    for name, found in guesses.items():
        yield LeakageRow(
            attack=name,
            knowledge=BASELINE,
            defense="none",
            round=round_index,
            stage=stage,
            images=len(truth),
            metrics={
                key: mean_interval(values[~values.isnan()])
                for key, metric in metrics.items()
                if not (values := metric(torch.stack(found), truth)).isnan().all()
            },
            cost={},
        )


def _labels_found(found: Tensor, labels: Tensor) -> Tensor:
    """Share of each update's labels that was found, in any order, ``(u, n)``."""
    shares = []
    for some, true in zip(found.tolist(), labels.tolist(), strict=True):
        common = sum(min(some.count(label), true.count(label)) for label in set(true))
        shares.append([common / len(true)] * len(true))
    return torch.tensor(shares)


def _over_runs(values: Sequence[Tensor]) -> Tensor:
    """The mean over the runs that have a value; NaN if none has."""
    return torch.stack([value.float() for value in values]).nanmean(0)


def _worst(metric: str, values: Tensor, places: Tensor) -> Worst:
    """The score of the picture that leaks most, and its index."""
    # LPIPS is a distance: its least value leaks most
    sign = -1 if metric.startswith("lpips") else 1
    best = (sign * values).nan_to_num(-torch.inf).argmax()
    return {"score": float(values[best]), "picture": int(places[best])}
