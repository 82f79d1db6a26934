"""The paper's accuracy table (arXiv 2305.04095), cell by cell, on your machine.

\b
    python run.py --list                                the 44 cells, and what has been run
    python run.py --models lenet --data-dir ~/data --download
    python run.py --all --data-dir ~/data --seeds 0,1,2
    python run.py --models resnet20 --data photos --rounds 10

A cell is a model, a data set and one of four settings: trained centrally or by FedAvg over three
silos, with the published lock or without. Federated cells are real FedML jobs over MPI, of four
ranks; a GPU is used where there is one.

As published: SGD with a learning rate of 0.01, Nesterov momentum 0.9 and weight decay 5e-4,
batches of 64, one local epoch, 200 rounds (centrally: epochs), the rate times 0.2 after 60, 120 and
160; with other --rounds after the same shares of them. LeNet has ReLU. Colour pictures are cropped
and mirrored in training, all are normalised by channel, and scaled to the model's size: 32x32, or
224x224 for ResNet-18, ResNet-34 and VGG-16.

Run again, it does what is left: finished cells are kept, and interrupted ones go on. The table is
in the output folder, as table.md.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import central
import click
import federated
from cells import DATA, KEYLOCK, PAPER, SETTINGS, SIZES, Cell, Recipe, choose
from data import Pictures, load
from table import ROLES, every, head, last, line, results, table
from tqdm import tqdm

from fedml_keylock.errors import KeyLockError
from fedml_keylock.files import replacing

SMOKE = Recipe(silos=2, rounds=1, batch_size=4, train_images=8, test_images=8)
"""One step in each silo, or two centrally: few silos, as each rank of VGG-16 takes up to 5 GB."""


def names(*allowed: str) -> Callable[..., list[str]]:
    """A list of names, separated by commas, for click."""

    def parse(_context: click.Context, _option: click.Parameter, value: str) -> list[str]:
        chosen = [name for name in value.lower().split(",") if name]
        wrong = [name for name in chosen if name not in allowed]
        if wrong:
            raise click.BadParameter(f"{wrong[0]!r} is none of {', '.join(allowed)}")
        return list(dict.fromkeys(chosen))

    return parse


def numbers(_context: click.Context, option: click.Parameter, value: str) -> list[int]:
    """A list of seeds for click."""
    try:
        chosen = sorted({int(number) for number in value.split(",")})
    except ValueError:
        chosen = []
    if not chosen or min(chosen) < 0:
        raise click.BadParameter(f"{value!r} is no list of numbers such as 0,1,2")
    return chosen


class Work:
    """Runs cells.

    Args:
        output: the folder of all cells.
        recipe: how they are trained.
        test_every: so many rounds a federated cell is tested.
        root: torchvision's folder of data sets.
        download: whether to fetch what is not there.
        stand_in: whether random pictures may take the place of what is not there.

    """

    def __init__(
        self,
        output: Path,
        recipe: Recipe,
        *,
        test_every: int,
        root: Path,
        download: bool,
        stand_in: bool,
    ) -> None:
        self.output, self.recipe, self.test_every = output, recipe, test_every
        self.root, self.download, self.stand_in = root.expanduser().resolve(), download, stand_in
        self.pictures = lru_cache(maxsize=1)(self._pictures)

    def _pictures(self, name: str) -> Pictures:
        try:
            found = load(name, self.root, download=self.download, stand_in=self.stand_in)
        except FileNotFoundError as error:
            raise click.ClickException(str(error)) from None
        return found.limited(self.recipe.train_images, self.recipe.test_images)

    def do(self, cell: Cell, seed: int) -> bool:
        """Run a cell unless it has been; say whether there was anything to do."""
        folder = self.output / cell.name
        result = folder / f"seed-{seed}.json"
        self._check_settings(cell, folder)
        if result.exists():
            return False
        pictures = self.pictures(cell.data)  # before a job is started that would not find them
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "settings.json").write_text(json.dumps(self._settings(cell), indent=1) + "\n")
        with tqdm(
            total=self.recipe.rounds,
            desc=f"{cell.name}, seed {seed}",
            unit="round" if cell.federated else "epoch",
        ) as bar:

            def progress(done: int) -> None:
                if bar.n:
                    bar.update(done - bar.n)
                else:  # what an earlier run did counts, but not for the speed
                    bar.initial = bar.n = done

            if cell.federated:
                found = federated.train(
                    cell,
                    self.recipe,
                    seed,
                    folder / f"job-{seed}",
                    progress,
                    test_every=self.test_every,
                    data={"data_cache_dir": str(self.root), "stand_in": self.stand_in},
                )
            else:
                checkpoint = folder / f"checkpoint-{seed}.safetensors"
                found = central.train(cell, self.recipe, seed, pictures, checkpoint, progress)
        found = {"cell": asdict(cell), "seed": seed, "settings": self._settings(cell), **found}
        found["published"] = cell.published
        with replacing(result, mode=0o666) as part:
            part.write_text(json.dumps(found, indent=1) + "\n")
        return True

    def _settings(self, cell: Cell) -> dict[str, Any]:
        settings = asdict(self.recipe) | {"keylock": KEYLOCK if cell.locked else None}
        return settings if cell.federated else settings | {"silos": None, "epochs": None}

    def _check_settings(self, cell: Cell, folder: Path) -> None:
        """Keep what was run under one set of settings from being taken for another's."""
        path, mine = folder / "settings.json", self._settings(cell)
        kept = json.loads(path.read_text()) if path.exists() else mine
        for name in mine:
            if kept.get(name) != mine[name]:
                raise click.ClickException(
                    f"{folder} was begun with {name} {kept.get(name)}, and not {mine[name]}: "
                    "give another --output, or the same settings"
                )


@click.command(help=__doc__, context_settings={"max_content_width": 100})
@click.option(
    "--models",
    default="",
    callback=names(*SIZES),
    metavar="LIST",
    help=f"Of {', '.join(SIZES)}; separated by commas, as in all lists.",
)
@click.option(
    "--all", "everything", is_flag=True, help="All models. This or --models must be given."
)
@click.option(
    "--data",
    default="",
    callback=names(*DATA),
    metavar="LIST",
    help=f"Of {', '.join(DATA)}. Without it, what each model was published on: LeNet on mnist, "
    "the others on cifar10 and cifar100. fashion_mnist (Debian's dataset-fashion-mnist) and photos "
    "(patches of scikit-image's) need no download and have no published number.",
)
@click.option(
    "--settings",
    default=",".join(SETTINGS),
    callback=names(*SETTINGS),
    show_default=True,
    metavar="LIST",
)
@click.option(
    "--seeds",
    default="0",
    callback=numbers,
    show_default=True,
    metavar="LIST",
    help="Several, such as 0,1,2, give a mean and a spread. Locks are drawn anew in each run.",
)
@click.option("--rounds", default=200, show_default=True, type=click.IntRange(1))
@click.option("--train-images", default=0, type=click.IntRange(0), help="Train on so many; 0, all.")
@click.option("--test-images", default=0, type=click.IntRange(0), help="Test with so many; 0, all.")
@click.option(
    "--test-every",
    default=5,
    show_default=True,
    type=click.IntRange(1),
    help="Rounds of a federated cell, which is tested after the last one in any case.",
)
@click.option(
    "--data-dir",
    default="data",
    show_default=True,
    type=click.Path(path_type=Path),
    help="torchvision's folder: it has MNIST/raw, cifar-10-batches-py, cifar-100-python.",
)
@click.option("--download", is_flag=True, help="Let torchvision fetch what is not there.")
@click.option("--output", default="results", show_default=True, type=click.Path(path_type=Path))
@click.option("--list", "listing", is_flag=True, help="Show the cells and what has been run.")
@click.option(
    "--smoke",
    is_flag=True,
    help="One training step in every chosen cell (a central one: three) with batches of four, to "
    "see that it runs. Nothing of it is in the table.",
)
@click.option(
    "--stand-in", is_flag=True, help="With --smoke: random pictures for data that are not there."
)
def main(
    models: list[str],
    everything: bool,
    data: list[str],
    settings: list[str],
    seeds: list[int],
    rounds: int,
    train_images: int,
    test_images: int,
    test_every: int,
    data_dir: Path,
    download: bool,
    output: Path,
    listing: bool,
    smoke: bool,
    stand_in: bool,
) -> None:
    if everything and models:
        raise click.UsageError("--all or --models, not both")
    if stand_in and not smoke:
        raise click.UsageError("--stand-in is for --smoke: random pictures teach nothing")
    chosen = choose(models or list(SIZES), data, settings)
    if listing or not (models or everything):
        click.echo(head())
        for cell in chosen:
            click.echo(line(cell, output))
        count = f"{len(chosen)} cells, {sum(cell in PAPER for cell in chosen)} of the paper's 44"
        click.echo(count if listing else f"{count}. Nothing was run: give --models or --all")
        return
    recipe = Recipe(rounds=rounds, train_images=train_images, test_images=test_images)
    if smoke:
        output, recipe = output / "smoke", SMOKE
        for cell in chosen:
            shutil.rmtree(output / cell.name, ignore_errors=True)
    work = Work(
        output,
        recipe,
        test_every=test_every,
        root=data_dir,
        download=download,
        stand_in=stand_in,
    )
    failed = []
    for cell in chosen:
        for seed in seeds:
            try:
                began, new = time.monotonic(), work.do(cell, seed)
            except KeyLockError as error:
                failed.append(cell.name)
                click.echo(f"{cell.name}, seed {seed}: {error}", err=True)
                continue
            if smoke:
                (found,) = results(output / cell.name)
                (share,) = last([found], ROLES[cell.setting])
                took = time.monotonic() - began
                click.echo(f"{cell.name}: runs, {took:.0f} s ({share:.0f} % of 8 pictures)")
            elif new:
                click.echo(f"{head()}\n{line(cell, output)}")
                (output / "table.md").write_text(table(every(), output))
    if smoke:
        click.echo(f"{len(chosen) - len(failed)} of {len(chosen)} cells run")
    else:
        for text in (head(), *(line(cell, output) for cell in chosen)):
            click.echo(text)
        output.mkdir(parents=True, exist_ok=True)
        (output / "table.md").write_text(table(every(), output))
        click.echo(f"table: {output / 'table.md'}")
    if failed:
        raise click.ClickException(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
