"""The frontier: what each defense point costs in accuracy, and what it leaves to who knows it.

For each point of points.py it trains real FedML jobs (FedAvg in FedML's one-process simulation: the
same algorithm as over MPI, and cheaper), tests the models under each silo's lock, a fresh one and
one that an attacker fits, and attacks updates of one SGD step, at the first weights and at the
trained ones, with every attacker who knows the lock. It writes table.md, frontier.json and
frontier.png.

\b
python examples/frontier/run.py --quick --output look      # a first look, LeNet on digits
python examples/frontier/run.py --output frontier          # LeNet on digits, hours
python examples/frontier/run.py --output frontier --only table --nets lenet,resnet20

Each training and each attack keeps its result in a file and is not done again: a run that was
stopped goes on. Accuracy is measured for every combination of --silos and --split, leakage for the
first of each. The point `none` is always there: the others are measured against it.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import accuracy as accuracies
from attackers import ATTACKERS, STAGES, Effort, wanted_of
from files import load, save
from leakage import attack
from picture import draw
from points import NETS, POINTS, Point
from splits import DATA, SPLITS, Setting
from table import gather, write
from training import DivergedError, train

from fedml_keylock.errors import KeyLockError
from fedml_keylock.evaluation.audit import muster

ROUNDS = {"lenet": 20, "resnet20": 10}
QUICK = {
    "seeds": 1,
    "images": 8,
    "restarts": 2,
    "steps": 300,
    "learning": 300,
    "batches": (1,),
    "attackers": ("oblivious", "joint", "first-layer", "simulating", "fitted", "oracle"),
}
"""What --quick means for options that are not given."""


@dataclass(frozen=True)
class Plan:
    """What is asked for."""

    output: Path
    points: tuple[Point, ...]
    nets: tuple[str, ...]
    data: tuple[str, ...]
    silos: tuple[int, ...]
    splits: tuple[str, ...]
    seeds: int
    rounds: int | None
    effort: Effort
    batches: tuple[int, ...]
    stages: tuple[str, ...]
    attackers: tuple[str, ...]

    def settings(self, net: str, data: str) -> Iterator[Setting]:
        """Every one of a net and data; the first silos and split's come first."""
        for silos, split, seed in product(self.silos, self.splits, range(self.seeds)):
            yield Setting(net, data, silos, split, seed, self.rounds or ROUNDS[net])

    def folder(self, setting: Setting, point: Point) -> Path:
        """Where everything of a point is, in one setting."""
        return self.output / setting.name / point.name

    def attacked(self, setting: Setting) -> bool:
        """Whether leakage is measured there."""
        return (setting.silos, setting.split) == (self.silos[0], self.splits[0])

    def each(self) -> Iterator[tuple[Setting, Point]]:
        """Everything, a seed of all points before the next: there is something to see early."""
        for net, data in product(self.nets, self.data):
            for setting in self.settings(net, data):
                for point in self.points:
                    if net in point.nets:
                        yield setting, point


class Several(click.ParamType):
    """Words or numbers with commas between them, each one of some."""

    name = "list"

    def __init__(self, allowed: Sequence[str] = (), kind: Callable[[str], Any] = str) -> None:
        self.allowed, self.kind = allowed, kind

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple:
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in value.split(",") if word.strip()]
        for word in words:
            if self.allowed and word not in self.allowed:
                self.fail(f"{word!r} is none of {', '.join(self.allowed)}", param, ctx)
        try:
            found = tuple(dict.fromkeys(self.kind(word) for word in words))
        except ValueError:
            self.fail(f"{value!r} is no list of whole numbers", param, ctx)
        if not found or (self.kind is int and min(found) < 1):
            self.fail(f"{value!r} names nothing to do", param, ctx)
        return found


def measure_accuracy(plan: Plan, tell: Callable[[str], None]) -> None:
    """Train and test what was not."""
    for setting, point in plan.each():
        folder = plan.folder(setting, point)
        title = f"{setting.name}, {point.name}"
        try:
            if train(point, setting, folder):
                tell(f"{title}: trained")
        except DivergedError as error:
            tell(f"{title}: diverged: {error}")
            save(folder / "accuracy.json", {"diverged": str(error)}, accuracies.BOUND)
            continue
        if load(folder / "accuracy.json", accuracies.BOUND) is None:
            found = accuracies.measure(point, setting, folder)
            save(folder / "accuracy.json", found, accuracies.BOUND)
            said = [f"{n} {100 * found[n]:.1f} %" for n in ("own", "fresh", "fitted") if n in found]
            tell(f"{title}: {', '.join(said)}")
        cost = plan.output / "cost" / f"{setting.net}-{point.name}.json"
        bound = {"lock": dict(point.lock or {})}
        if load(cost, bound) is None:
            found = accuracies.step_ratio(point, setting.net)
            save(cost, found, bound)
            tell(
                f"{setting.net}, {point.name}: a step takes {found['step_ratio']:.2f} of the plain"
            )


def measure_leakage(plan: Plan, workers: int | None, tell: Callable[[str], None]) -> None:
    """Attack what was not attacked."""
    with muster(workers) as crew:
        for setting, point in plan.each():
            if not plan.attacked(setting):
                continue
            folder = plan.folder(setting, point)
            stages = plan.stages
            if "trained" in stages:
                try:
                    train(point, setting, folder)
                except DivergedError:
                    stages = tuple(stage for stage in stages if stage != "trained")
            wanted = list(wanted_of(point, setting.net, plan.attackers, stages, plan.batches))
            attack(
                point,
                setting,
                folder,
                plan.effort,
                wanted,
                crew=crew,
                tell=lambda said, title=f"{setting.name}, {point.name}": tell(f"{title}: {said}"),
            )


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path), default=Path("frontier"))
@click.option(
    "--points",
    type=Several(list(POINTS)),
    help=f"Of points.py, all of them without it: {', '.join(POINTS)}.",
)
@click.option(
    "--nets", type=Several(NETS), default="lenet", show_default=True, help=", ".join(NETS)
)
@click.option(
    "--data", type=Several(list(DATA)), default="mnist", show_default=True, help=", ".join(DATA)
)
@click.option("--silos", type=Several(kind=int), default="3", show_default=True, help="How many.")
@click.option(
    "--split",
    type=Several(SPLITS),
    default="iid",
    show_default=True,
    help="iid; dirichlet: each class shared out by Dirichlet(0.5).",
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Runs; the intervals are over them.",
)
@click.option("--rounds", type=click.IntRange(1), help="20 for LeNet, 10 for ResNet-20, without.")
@click.option(
    "--images",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Attacked, in each seed.",
)
@click.option(
    "--restarts",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Of the search `joint`; the others have half or a fifth.",
)
@click.option(
    "--steps", type=click.IntRange(1), default=600, show_default=True, help="Of a search."
)
@click.option(
    "--learning",
    type=click.IntRange(1),
    default=1200,
    show_default=True,
    help="Steps by which a decoder is trained (`simulating`).",
)
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    default=Effort.rate,
    show_default=True,
    help="Of the attacked step: 1e6 keeps its gradient whole, the job's own 0.1 rounds it.",
)
@click.option(
    "--batches", type=Several(kind=int), default="1,4", show_default=True, help="Images an update."
)
@click.option(
    "--stages",
    type=Several(STAGES),
    default=",".join(STAGES),
    show_default=True,
    help="Weights that are attacked.",
)
@click.option(
    "--attackers",
    "rows",
    type=Several(ATTACKERS),
    help=f"All of them without it: {', '.join(ATTACKERS)}.",
)
@click.option(
    "--workers", type=click.IntRange(1), help="Processes that attack; one a core without."
)
@click.option(
    "--only",
    type=click.Choice(["accuracy", "leakage", "table"]),
    help="One part; table: of what is there that was made with the same options.",
)
@click.option("--quick", is_flag=True, help="Fewer of everything that is not given.")
@click.pass_context
def main(ctx: click.Context, **given: Any) -> None:
    if given["quick"]:
        for name, value in QUICK.items():
            key = "rows" if name == "attackers" else name
            if ctx.get_parameter_source(key) == click.core.ParameterSource.DEFAULT:
                given[key] = value
    chosen = dict.fromkeys(("none", *(given["points"] or POINTS)))
    plan = Plan(
        output=given["output"],
        points=tuple(POINTS[name] for name in chosen),
        nets=given["nets"],
        data=given["data"],
        silos=given["silos"],
        splits=given["split"],
        seeds=given["seeds"],
        rounds=given["rounds"],
        effort=Effort(
            given["images"], given["restarts"], given["steps"], given["learning"], given["rate"]
        ),
        batches=given["batches"],
        stages=given["stages"],
        attackers=given["rows"] or ATTACKERS,
    )
    torch.set_num_threads(1)
    try:
        if given["only"] in (None, "accuracy"):
            measure_accuracy(plan, click.echo)
        if given["only"] in (None, "leakage"):
            measure_leakage(plan, given["workers"], click.echo)
        rows = gather(plan)
    except KeyLockError as error:
        raise click.ClickException(str(error)) from None
    pages = write(rows, plan.output)
    pages.append(draw(rows, plan.output / "frontier.png"))
    click.echo("\n".join(str(page) for page in pages))


if __name__ == "__main__":
    main()
