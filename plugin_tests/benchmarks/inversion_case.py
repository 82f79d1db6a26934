"""One case of inverting gradients, for this engine, for breaching and for a plain loop.

Pixels are normalised as breaching has it, by mean 0.5 and deviation 0.25, for all three: the model
takes values in [-2, 2], starts are standard normal, the learning rate is 0.1 and falls to a tenth
after 3/8, 5/8 and 7/8 of the steps. Labels are known to all. All take the mean of absolute
differences of neighbours, with the same weight.

What stays different: breaching counts the difference between the last row (column) and an edge of
zeros too, keeps the iterate whose cost and prior were least where the others keep the last, and
draws other starts.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from fedml_keylock.inversion import Knowledge, inverting_gradients
from fedml_keylock.types import ClientUpdate

MEAN, DEVIATION = 0.5, 0.25
TOTAL_VARIATION = 0.01  # for pixels in units of the bounds' width, which is four deviations


@dataclass(frozen=True)
class Case:
    """Images, each sent as the gradient of a batch of one, or of n.

    Attributes:
        model: in train mode.
        images: ``(u * n, 3, 32, 32)`` normalised.
        labels: ``(u, n)``.
        updates: u of them.

    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    updates: list[ClientUpdate]


def case(model: nn.Module, count: int, batch: int = 1) -> Case:
    """Crops of two colour photos (again and again, from 24 on), so many batches of them."""
    crops = []
    for photo in load_sample_images().images:
        pixels = torch.tensor(photo).permute(2, 0, 1).float() / 255
        small = interpolate(pixels[None], size=(107, 160), mode="area")[0]
        crops += [small[:, a : a + 32, b : b + 32] for a in (2, 38, 74) for b in (4, 44, 84, 124)]
    total = count * batch
    images = (torch.stack([crops[i % len(crops)] for i in range(total)]) - MEAN) / DEVIATION
    labels = (torch.arange(total) % 10).view(count, batch)
    before = {name: p.detach().clone() for name, p in model.train().named_parameters()}
    updates = []
    for silo in range(count):
        loss = cross_entropy(model(images[silo * batch :][:batch]), labels[silo])
        gradient = torch.autograd.grad(loss, list(model.parameters()))
        after = {n: before[n] - g for n, g in zip(before, gradient, strict=True)}
        updates.append(ClientUpdate(before, after, 1.0, silo=silo))
    return Case(model, images, labels, updates)


def psnr(found: Tensor, images: Tensor) -> Tensor:
    """``(u,)`` decibels, of pixels in [0, 1]."""
    apart = ((found - images) * DEVIATION).square().flatten(1).mean(1)
    return -10 * apart.log10()


def by_this(
    of: Case,
    *,
    steps: int,
    restarts: int,
    chunk: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """All images at once."""
    knowledge = Knowledge(
        "oblivious",
        input_shape=(3, 32, 32),
        classes=10,
        batch=of.labels.shape[1],
        bounds=(-2.0, 2.0),
        labels=of.labels,
    )
    attack = inverting_gradients(
        steps=steps, restarts=restarts, total_variation=TOTAL_VARIATION, chunk=chunk
    )
    generator = torch.Generator().manual_seed(0)
    found = attack.reconstruct(
        of.updates, of.model, knowledge=knowledge, generator=generator, progress=progress
    )
    return found.images.flatten(0, 1)


def by_torch_alone(of: Case) -> None:
    """What a step of attacks on all of them cannot do without: a bound, and no attack.

    All images are one batch with one gradient. Forward, gradient by the weights, cost, and its
    gradient by the images: no candidate has a gradient of its own, and there are neither prior nor
    optimiser.
    """
    parameters = list(of.model.parameters())
    targets = [of.updates[0].pseudo_gradient(name) for name, _ in of.model.named_parameters()]
    x = of.images.clone().requires_grad_()
    loss = cross_entropy(of.model(x), of.labels.flatten(), reduction="sum")
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    dot = torch.stack([(g * t).sum() for g, t in zip(gradients, targets, strict=True)]).sum()
    norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    torch.autograd.grad(-dot / norm, x)


def by_breaching(of: Case, which: range, *, steps: int, restarts: int) -> Tensor:
    """Some of the images, one after the other, through breaching's own interface."""
    import breaching

    with contextlib.redirect_stdout(io.StringIO()):
        config = breaching.get_attack_config(
            "invertinggradients",
            overrides=[
                f"optim.max_iterations={steps}",
                f"restarts.num_trials={restarts}",
                f"regularization.total_variation.scale={TOTAL_VARIATION / 4}",
            ],
        )
    setup = {"dtype": torch.float, "device": torch.device("cpu")}
    attack = breaching.attacks.prepare_attack(of.model, nn.CrossEntropyLoss(), config, setup)
    metadata = SimpleNamespace(
        shape=(3, 32, 32), mean=(MEAN,) * 3, std=(DEVIATION,) * 3, modality="vision"
    )
    parameters = list(of.model.parameters())
    # no buffers from either side: train mode, normalised by the batch's statistics
    payload = [{"parameters": parameters, "buffers": None, "metadata": metadata}]
    found = []
    for index in which:
        gradients = [of.updates[index].pseudo_gradient(n) for n, _ in of.model.named_parameters()]
        known = {"num_data_points": 1, "labels": of.labels[index], "local_hyperparams": None}
        shared = [{"gradients": gradients, "buffers": None, "metadata": known}]
        found.append(attack.reconstruct(payload, shared, {})[0]["data"])
    return torch.cat(found)


def by_a_plain_loop(of: Case, index: int, *, steps: int) -> Tensor:
    """One image, one start: what one would write first."""
    model, label = of.model, of.labels[index]
    parameters = list(model.parameters())
    targets = [of.updates[index].pseudo_gradient(name) for name, _ in model.named_parameters()]
    size = torch.stack([t.square().sum() for t in targets]).sum().sqrt()
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(index)).requires_grad_()
    optimizer = torch.optim.Adam([x], 0.1)
    milestones = [steps * eighths // 8 for eighths in (3, 5, 7)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    for _ in range(steps):
        loss = cross_entropy(model(x), label)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        dot = torch.stack([(g * t).sum() for g, t in zip(gradients, targets, strict=True)]).sum()
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        across, down = x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]
        prior = TOTAL_VARIATION / 4 * (across.abs().mean() + down.abs().mean())
        (gradient,) = torch.autograd.grad(1 - dot / (norm * size) + prior, x)
        x.grad = gradient.sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            x.clamp_(-2, 2)
    return x.detach()
