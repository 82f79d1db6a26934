"""Prints what each attack reaches where it is known to succeed: the self-tests of the README here.

python plugin_tests/inversion/figures.py

About eight minutes. The nets and photos are the tests' own (conftest.py); restarts are chosen by
their cost, and nothing is chosen by the truth.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import click
import conftest
import text_figures
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from tqdm import tqdm

from fedml_keylock.evaluation.matching import match
from fedml_keylock.evaluation.metrics import psnr, ssim
from fedml_keylock.inversion import (
    Attack,
    Knowledge,
    Pixels,
    analytic,
    dlg,
    gradinversion,
    grnn,
    idlg,
    inverting_gradients,
)

PHOTO = Knowledge("oblivious", input_shape=(3, 32, 32), classes=10)
DIGIT = Knowledge("oblivious", input_shape=(1, 28, 28), classes=10)
Row = tuple[str, str, Attack, nn.Module, Tensor, Knowledge]


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def rows() -> Iterator[Row]:
    photos = conftest.photos.__wrapped__()
    digits = conftest.digits.__wrapped__()
    lenet, smooth = conftest.LeNet(), conftest.LeNet(activation=nn.GELU)
    sigmoid, gelu = "LeNet, sigmoid, weights +-0.5; photo", "LeNet, GELU, torch's weights; photo"
    yield "analytic", "MLP; digit", analytic(), mlp(), digits, DIGIT
    yield "dlg", sigmoid, dlg(restarts=4), lenet, photos, PHOTO
    uniform = idlg(restarts=4, enough=1e-7, parametrisation=Pixels("uniform"))
    yield "idlg, uniform starts", sigmoid, uniform, lenet, photos, PHOTO
    yield (
        "inverting_gradients, 2,000 steps",
        sigmoid,
        inverting_gradients(steps=2000),
        lenet,
        photos,
        PHOTO,
    )
    faint = inverting_gradients(steps=2000, total_variation=1e-4)
    yield "the same, total variation 1e-4", gelu, faint, smooth, photos, PHOTO
    yield "gradinversion, 2,000 steps", gelu, gradinversion(steps=2000), smooth, photos, PHOTO
    padded = interpolate(digits[:1], size=(32, 32))
    yield (
        "grnn, 2,000 steps", "LeNet, sigmoid; digit", grnn(steps=2000),
        conftest.LeNet(channels=1), padded, replace(DIGIT, input_shape=(1, 32, 32)),
    )  # fmt: skip
    for batch, smoothness in ((2, 1e-3), (4, 1e-3), (8, 1e-3), (16, 1e-2)):
        many = torch.cat([photos, photos.flip(3), photos.flip(2)])[:batch]
        yield (
            f"a batch of {batch}, 3,000 steps, total variation {smoothness:g}", gelu,
            inverting_gradients(steps=3000, total_variation=smoothness), smooth, many,
            replace(PHOTO, batch=batch),
        )  # fmt: skip


def score(attack: Attack, model: nn.Module, images: Tensor, knowledge: Knowledge) -> str:
    labels = torch.arange(len(images)) % 10
    batches = list(zip(images.split(knowledge.batch), labels.split(knowledge.batch), strict=True))
    updates = [conftest.update_of(model, x, y) for x, y in batches]
    began = time.monotonic()
    with tqdm(leave=False) as bar:
        found = attack.reconstruct(
            updates,
            model,
            knowledge=knowledge,
            generator=torch.Generator().manual_seed(0),
            progress=advance(bar),
        )
    made = torch.cat([x[match(x, y)] for x, (y, _) in zip(found.images, batches, strict=True)])
    right = torch.cat(
        [
            (x.sort().values == y.sort().values).float()
            for x, (_, y) in zip(found.labels, batches, strict=True)
        ]
    )
    decibels = psnr(made, images)
    each = ", ".join(f"{value:.0f}" for value in decibels.tolist())
    return (
        f"{decibels.mean():.1f} ({each}) | {ssim(made, images).mean():.2f} | "
        f"{100 * right.mean():.0f} % | {time.monotonic() - began:.0f} s"
    )


def advance(bar: "tqdm[None]") -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return report


if __name__ == "__main__":
    click.echo(
        "| attack | net; picture | PSNR, dB | SSIM | labels | time |\n|---|---|---|---|---|---|"
    )
    for name, where, attack, model, images, knowledge in rows():
        click.echo(f"| {name} | {where} | {score(attack, model, images, knowledge)} |")
    for line in text_figures.lines():
        click.echo(line)
