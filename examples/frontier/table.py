"""Results of every point as one row each: intervals over seeds, and which conditions it fails.

Nothing is chosen by the truth: an attacker's score is the mean over all images and seeds, and the
strongest is the one attacker whose mean is the highest.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from accuracy import BOUND
from attackers import wanted_of
from files import load
from leakage import FLOOR, file_of, floor_settings, settings_of

from fedml_keylock.evaluation.interval import mean_interval

Row = dict[str, Any]
SHOWN = ("ssim_aligned", "ssim", "psnr", "label_accuracy", "cost", "lost")
CLASS_MEAN = "mean image of the class"
ABOVE_FLOOR, UNDEFENDED, ORACLE = 0.10, 0.6, 0.3
POINTS_LOST, FRESH, GAP, STEP = 0.5, 0.20, 0.5, 1.05
TARGET = (
    "Target: the strongest attacker's aligned SSIM at most the class mean's + "
    f"{ABOVE_FLOOR:.2f}, where an undefended update gives {UNDEFENDED} and the oracle reads "
    f"{ORACLE}, at untrained and at trained weights; accuracy under the own lock within "
    f"{POINTS_LOST} points of plain FedAvg's; under a fresh lock at most {100 * FRESH:.0f} %; "
    "under a lock fitted on 64 public images at most halfway from a net trained on these alone "
    f"to the own lock's; a training step at most {STEP} times as long."
)
NOTE = (
    "*Own*: accuracy under the silos' own locks minus plain FedAvg's, in points, mean over seeds "
    "[95 % interval]; for dp and pruning the model's own. *Fresh*, *fitted*, *scratch*: "
    "accuracy, %, under fresh random locks, under a lock fitted on 64 public images, and of a net "
    "trained on those 64 alone. *Strongest*: mean aligned SSIM of the strongest attacker without "
    "a silo's private state. *Class mean*: the mean public image of the class, no gradient. "
    "*Plain*: the strongest attacker on plain FedAvg's update. *Baseline*: `joint` on the same "
    "step at the same weights, unprotected. *Oracle*: the better of `joint` with "
    "the silo's private state and of a decoder trained under the silos' own locks. "
    "*Sum of the others* (in the lower table): what each silo has of any average, of as many other "
    "silos as the batch says, one image each. "
    "*Labels*: share recovered, %, at the most. *Upload*, *step*: over plain FedAvg's. -: does "
    "not apply, or was not measured; what was not measured is named, and passes nothing."
)
HEAD = (
    "point",
    "own",
    "fresh",
    "fitted",
    "scratch",
    "strongest, untrained",
    "strongest, trained",
    "class mean",
    "plain",
    "baseline",
    "oracle",
    "labels",
    "upload",
    "step",
    "fails",
    "not measured",
)


def gather(plan: Any) -> list[Row]:
    """A row for every point, net, data, number of silos and split, of what there is on disk."""
    rows = []
    for net, data, silos, split in product(plan.nets, plan.data, plan.silos, plan.splits):
        settings = [s for s in plan.settings(net, data) if (s.silos, s.split) == (silos, split)]
        made = [
            _row(plan, settings, point)
            for point in plan.points
            if net in point.nets and any(plan.folder(s, point).exists() for s in settings)
        ]
        if not made or made[0]["point"] != "none":
            continue
        for row in made:
            _against(row, made[0])
        rows += made
    return rows


def _row(plan: Any, settings: Sequence[Any], point: Any) -> Row:
    first = settings[0]
    found = [load(plan.folder(s, point) / "accuracy.json", BOUND) for s in settings]
    diverged = sum(one is not None and "diverged" in one for one in found)
    found = [None if one is None or "diverged" in one else one for one in found]
    cost = plan.output / "cost" / f"{first.net}-{point.name}.json"
    row: Row = {
        "point": point.name,
        "family": point.family,
        "net": first.net,
        "data": first.data,
        "silos": first.silos,
        "split": first.split,
        "rounds": first.rounds,
        "locked": point.lock is not None,
        "own_by_seed": [None if one is None else one["own"] for one in found],
        "step_ratio": (load(cost, {"lock": dict(point.lock or {})}) or {}).get("step_ratio"),
        "diverged": diverged,
        "stages": {},
    }
    for name in ("own", "fresh", "fitted", "from_scratch", "server", "upload_bytes"):
        row[name] = _interval([one[name] for one in found if one is not None and name in one])
    if plan.attacked(first):
        row["stages"] = {
            s: stage for s in plan.stages if (stage := _stage(plan, settings, point, s))
        }
    return row


def _stage(plan: Any, settings: Sequence[Any], point: Any, stage: str) -> dict[str, Any]:
    """Every attacker at one stage, by name and batch; and what no gradient gives."""
    made: dict[str, Any] = {"attackers": {}, "floors": {}}
    net = settings[0].net
    for attacker, _, batch in wanted_of(point, net, plan.attackers, (stage,), plan.batches):
        bound = settings_of(attacker, plan.effort)
        files = [file_of(plan.folder(s, point), stage, batch, attacker.name) for s in settings]
        results = [one for path in files if (one := load(path, bound)) is not None]
        if not results:
            continue
        made["attackers"][f"{attacker.name}, batch {batch}"] = {
            "knows": attacker.knows,
            "name": attacker.name,
            "batch": batch,
            **{name: _interval([r[name] for r in results if r[name] == r[name]]) for name in SHOWN},
        }
        floors = [file_of(plan.folder(s, point), stage, batch, FLOOR) for s in settings]
        bound = floor_settings(plan.effort)
        known = [one for path in floors if (one := load(path, bound)) is not None]
        made["floors"][str(batch)] = {
            name: _interval([one[name]["ssim_aligned"] for one in known if name in one])
            for name in ("mean image", CLASS_MEAN, "nearest public image")
        }
    return made if made["attackers"] else {}


def _interval(values: Sequence[float]) -> dict[str, Any] | None:
    return mean_interval(values) if values else None


def _against(row: Row, plain: Row) -> None:
    """What a point is beside plain FedAvg of the same seeds; and what it fails."""
    pairs = zip(row["own_by_seed"], plain["own_by_seed"], strict=True)
    row["own_minus_plain"] = _interval(
        [100 * (own - other) for own, other in pairs if None not in (own, other)]
    )
    sizes = (_mean(row["upload_bytes"]), _mean(plain["upload_bytes"]))
    row["upload_ratio"] = None if None in sizes else sizes[0] / sizes[1]
    for name, stage in row["stages"].items():
        stage["strongest"] = strongest(stage)
        other = plain["stages"].get(name)
        title = strongest(other) if other else None
        stage["plain"] = other["attackers"][title]["ssim_aligned"]["mean"] if title else None
    row["fails"], row["not_measured"] = judged(row)


def strongest(stage: Mapping[str, Any]) -> str | None:
    """The title of the attacker, without a silo's private state, whose mean is the highest."""
    scores = {
        title: score["ssim_aligned"]["mean"]
        for title, score in stage["attackers"].items()
        if score["knows"] and score["ssim_aligned"] is not None
    }
    return max(scores, key=scores.__getitem__) if scores else None


def judged(row: Row) -> tuple[list[str], list[str]]:
    """Which of the target's conditions a row fails, and which were not measured."""
    found: dict[str, bool | None] = {}
    if row["diverged"]:
        found[f"training (diverged in {row['diverged']} seeds)"] = False
    for stage in ("untrained", "trained"):
        found |= _judged_stage(row, stage)
    lost = _mean(row["own_minus_plain"])
    found["accuracy"] = None if lost is None else lost >= -POINTS_LOST
    step = row["step_ratio"]
    found["step"] = None if step is None else step <= STEP
    if row["locked"]:
        fresh, fitted = _mean(row["fresh"]), _mean(row["fitted"])
        own, scratch = _mean(row["own"]), _mean(row["from_scratch"])
        found["fresh"] = None if fresh is None else fresh <= FRESH
        known = None not in (fitted, own, scratch)
        found["fitted"] = fitted <= scratch + GAP * (own - scratch) if known else None
    failed = [name for name, passed in found.items() if passed is False]
    return failed, [name for name, passed in found.items() if passed is None]


def _judged_stage(row: Row, stage: str) -> dict[str, bool | None]:
    made = row["stages"].get(stage)
    names = ["leakage", "undefended", *(["oracle"] if row["locked"] else [])]
    if not made:
        return {f"{name}, {stage}": None for name in names}
    oracle, plain = _best(made, "oracle"), made["plain"]
    found: dict[str, bool | None] = {
        "leakage": _below_floor(made),
        "undefended": None if plain is None else plain >= UNDEFENDED,
        "oracle": None if oracle is None else oracle >= ORACLE,
    }
    return {f"{name}, {stage}": found[name] for name in names}


def _below_floor(stage: Mapping[str, Any]) -> bool | None:
    """Whether each attacker is, by the class means of the very images that he was given."""
    margins = [
        score["ssim_aligned"]["mean"] - floor
        for score in stage["attackers"].values()
        if score["knows"]
        and score["ssim_aligned"] is not None
        and (floor := _mean(stage["floors"][str(score["batch"])][CLASS_MEAN])) is not None
    ]
    return max(margins) <= ABOVE_FLOOR if margins else None


def _mean(interval: Mapping[str, Any] | None) -> float | None:
    return None if interval is None else interval["mean"]


def page(rows: Sequence[Row]) -> str:
    """All rows as Markdown, a table for every net, data, number of silos and split."""
    text = ["# The frontier\n", NOTE, f"\n{TARGET}"]
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[n] for n in ("net", "data", "silos", "split")), []).append(row)
    for (net, data, silos, split), some in groups.items():
        rounds, seeds = some[0]["rounds"], _seeds(some[0])
        text.append(f"\n## {net}, {data}, {silos} silos, {split}, {rounds} rounds, {seeds} seeds\n")
        text += [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
        text += [f"| {' | '.join(_cells(row))} |" for row in some]
        text += _every_attacker(some)
    return "\n".join(text) + "\n"


def _seeds(row: Row) -> int:
    """How many were trained and tested."""
    return int((row["own"] or {"n": 0})["n"])


def _cells(row: Row) -> list[str]:
    stages, seeds = row["stages"], _seeds(row)

    def both(make: Any) -> str:
        return " / ".join(make(stages[s]) if s in stages else "-" for s in ("untrained", "trained"))

    return [
        row["point"],
        _said(row["own_minus_plain"], "+.1f"),
        *(_share(row[name]) for name in ("fresh", "fitted", "from_scratch")),
        *(_strongest(stages.get(stage), seeds) for stage in ("untrained", "trained")),
        both(lambda stage: _number(_floor(stage))),
        both(lambda stage: _number(stage["plain"])),
        both(lambda stage: _number(_best(stage, "twin"))),
        both(lambda stage: _number(_best(stage, "oracle"))),
        both(lambda stage: _share(_labels(stage))),
        _number(row["upload_ratio"]),
        _number(row["step_ratio"]),
        "; ".join(row["fails"]) or "nothing",
        "; ".join(row["not_measured"]) or "-",
    ]


def _every_attacker(rows: Sequence[Row]) -> list[str]:
    """Aligned SSIM of each attacker on each point."""
    titles = dict.fromkeys(
        title for row in rows for stage in row["stages"].values() for title in stage["attackers"]
    )
    if not titles:
        return []
    lines = ["\nEvery attacker, aligned SSIM, untrained / trained:\n"]
    lines += [f"| point | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for row in rows:
        cells = []
        for title in titles:
            found = (row["stages"].get(stage, {}) for stage in ("untrained", "trained"))
            scores = (one.get("attackers", {}).get(title, {}).get("ssim_aligned") for one in found)
            cells.append(" / ".join(_number(_mean(score)) for score in scores))
        lines.append(f"| {row['point']} | {' | '.join(cells)} |")
    return lines


def _strongest(stage: Mapping[str, Any] | None, seeds: int) -> str:
    title = stage and stage["strongest"]
    if not title:
        return "-"
    score = stage["attackers"][title]["ssim_aligned"]
    fewer = f", {score['n']} of {seeds} seeds" if score["n"] < seeds else ""
    return f"{_said(score, '.2f')} ({title}{fewer})"


def _floor(stage: Mapping[str, Any]) -> float | None:
    first = next(iter(stage["floors"].values()), {})
    return _mean(first.get(CLASS_MEAN))


def _best(stage: Mapping[str, Any], name: str) -> float | None:
    found = [
        mean
        for score in stage["attackers"].values()
        if score["name"].startswith(name) and (mean := _mean(score["ssim_aligned"])) is not None
    ]
    return max(found, default=None)


def _labels(stage: Mapping[str, Any]) -> dict[str, Any] | None:
    found = [
        score["label_accuracy"]
        for score in stage["attackers"].values()
        if score["knows"] and score["label_accuracy"] is not None
    ]
    return max(found, key=lambda one: one["mean"], default=None)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _share(interval: Mapping[str, Any] | None) -> str:
    return "-" if interval is None else f"{100 * interval['mean']:.0f}"


def _said(interval: Mapping[str, Any] | None, how: str) -> str:
    if interval is None:
        return "-"
    if interval["low"] is None:
        return f"{interval['mean']:{how}}"
    return f"{interval['mean']:{how}} [{interval['low']:{how}}, {interval['high']:{how}}]"


def write(rows: Sequence[Row], output: Path) -> list[Path]:
    """Write the table and the numbers behind it."""
    output.mkdir(parents=True, exist_ok=True)
    table, numbers = output / "table.md", output / "frontier.json"
    table.write_text(page(rows))
    numbers.write_text(json.dumps({"target": TARGET, "rows": rows}, indent=1) + "\n")
    return [table, numbers]
