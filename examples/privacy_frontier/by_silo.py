"""unit: silo, in one process: local training of 3 to 10,000 silos, clipped updates, noise.

From how many silos on it pays, for all weights of LeNet and for fewer: the last layer alone, or a
matrix of low rank in its place, on what Fashion-MNIST, as public data, has taught the layers below.
Beside it FedML's own ldp and cdp, at the same accounted epsilon.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from by_example import DELTA, clipped_sum, trained
from sets import CHUNK, CLASSES, EXAMPLES, first_model, pictures, widened
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parameters_to_vector

from fedml_keylock.privacy.accountant import multiplier_for

ROUNDS, EPSILON = 20, 8.0
MOST = 300
"""Digits that a silo trains on in a round, drawn anew in each: those of few silos are many."""
RANK = 64
MECHANISMS = ("none", "sealed", "ldp", "cdp")
MANY, LONGER = 10_000, 3
"""From so many silos on the noise allows a clip that is so many times as long."""


@dataclass(frozen=True)
class Kind:
    """What silos train, and how: public numbers, chosen on one seed.

    Attributes:
        rate: of plain SGD.
        epochs: over a silo's digits of the round.
        clip: of its update.
        weights: what FedML's cdp clips all weights to.
        together: silos that are trained at a time.

    """

    rate: float
    epochs: int
    clip: float
    weights: float
    together: int


KINDS = {
    "full": Kind(rate=0.1, epochs=1, clip=1.0, weights=5.0, together=100),
    "last": Kind(rate=0.05, epochs=2, clip=1.0, weights=2.0, together=1000),
    "low rank": Kind(rate=0.3, epochs=5, clip=1.0, weights=2.0, together=1000),
}


class Task:
    """What silos train, as a function of a vector of weights.

    Attributes:
        inputs: of the training set ``(60000, ...)``.
        tests: of the test set.
        first: the weights that round 0 begins with ``(d,)``.

    """

    def __init__(self, root: Path, work: Path, kind: str, seed: int) -> None:
        data, self.kind = pictures(root, "mnist"), KINDS[kind]
        self.labels, self.test_labels = data.labels, data.test_labels
        if kind == "full":
            net = first_model(seed)
            sizes = {name: value.shape for name, value in net.named_parameters()}
            self.inputs, self.tests = data.images, data.test_images
            self.first = parameters_to_vector(net.parameters()).detach().clone()

            def scores(weights: Tensor, inputs: Tensor) -> Tensor:
                pieces = weights.split([size.numel() for size in sizes.values()])
                pairs = zip(sizes.items(), pieces, strict=True)
                return functional_call(net, {n: p.view(s) for (n, s), p in pairs}, (inputs,))

        else:
            self.inputs, self.tests = public_features(root, work, low_rank=kind == "low rank")
            self.first = torch.zeros((self.inputs.shape[1] + 1) * CLASSES)

            def scores(weights: Tensor, inputs: Tensor) -> Tensor:
                matrix, bias = weights[:-CLASSES], weights[-CLASSES:]
                return inputs @ matrix.view(-1, CLASSES) + bias

        self.scores = scores
        self.gradients = vmap(grad(lambda w, x, y: F.cross_entropy(scores(w, x), y)))

    def accuracy(self, weights: Tensor) -> float:
        """On the test set."""
        found = [self.scores(weights, some).argmax(1) for some in self.tests.split(CHUNK)]
        return int((torch.cat(found) == self.test_labels).sum()) / len(self.test_labels)

    def updates(
        self, weights: Tensor, silos: int, order: Tensor, draw: torch.Generator
    ) -> Iterator[Tensor]:
        """What each silo's training changes, some silos at a time ``(n, d)``."""
        own, kind = EXAMPLES // silos, self.kind
        used = min(own, MOST)
        batch = min(50, max(2, used // 6))
        for start in range(0, silos, kind.together):
            count = min(silos - start, kind.together)
            first = torch.arange(start, start + count)[:, None] * own
            moved = weights.repeat(count, 1)
            for _ in range(kind.epochs):
                pick = torch.rand(count, own, generator=draw).argsort(1)[:, :used]
                for some in (order[first + pick]).split(batch, 1):
                    moved -= kind.rate * self.gradients(moved, self.inputs[some], self.labels[some])
            yield moved - weights


@lru_cache(maxsize=2)
def public_features(root: Path, work: Path, *, low_rank: bool) -> tuple[Tensor, Tensor]:
    """What a LeNet of Fashion-MNIST makes of all digits, before its last layer.

    Of a low-rank change B A of the last layer A stays what it is, directions in which Fashion-MNIST
    varies most, and B alone is trained: so no product of two noises is added (FFA-LoRA, Sun et al.
    2024, arXiv 2403.12313).
    """
    net = trained(work / "public.safetensors", root, "fashion_mnist", None)
    net[1].classifier = nn.Identity()
    digits, others = pictures(root, "mnist"), pictures(root, "fashion_mnist").test_images
    with torch.no_grad():
        public, own, tests = (
            torch.cat([net(some) for some in images.split(CHUNK)])
            for images in (others, digits.images, digits.test_images)
        )
    mean, spread = public.mean(0), public.std(0) + 0.1 * public.std()
    own, tests = (own - mean) / spread, (tests - mean) / spread
    if not low_rank:
        return own, tests
    line = torch.linalg.svd((public - mean) / spread, full_matrices=False).Vh[:RANK].T
    scale = RANK**0.5 / ((public - mean) / spread @ line).norm(dim=1).mean()
    return own @ line * scale, tests @ line * scale


@dataclass(frozen=True)
class Sealed:
    """The package's: clipped updates, of which all silos' noise is in the sum.

    Attributes:
        clip: of an update.
        deviation: of the noise in the sum.

    """

    clip: float
    deviation: float

    def sent(self, updates: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """What some silos' updates add to the sum: without noise, and with their own.

        An update that is not finite is sent as none, as silos send it.
        """
        total = clipped_sum(updates[updates.isfinite().all(1)], self.clip)
        return total, total

    def opened(self, average: Tensor, weights: Tensor, silos: int, draw: Any) -> Tensor:
        """The update that all silos load."""
        return average + self.deviation / silos * torch.randn(len(average), generator=draw)


class FromFedML:
    """FedML's own ldp or cdp, with as much noise as the same epsilon takes.

    Its deviation is ``sqrt(2 log(1.25 / delta)) sensitivity / epsilon``, with epsilon at most 1;
    whatever these are called, what is accounted for is the deviation over the clip.

    ldp: each silo adds noise to its weights. FedML clips nothing there, so that no noise is worth
    an epsilon; here the update is clipped before. As each silo's message is seen, each adds all of
    the noise. cdp: the server, whom all trust, clips each silo's *weights*, not its update, and
    adds noise to their average, of which a silo's share is 1/m. Both draw from torch's generator,
    which FedML seeds alike on every rank: here silos' noise is taken to be independent.
    """

    def __init__(self, frame: str, kind: Kind, multiplier: float, silos: int) -> None:
        from fedml.core.dp.frames.cdp import GlobalDP
        from fedml.core.dp.frames.ldp import LocalDP

        self.local, self.clip = frame == "ldp", kind.clip
        deviation = multiplier * (kind.clip if self.local else kind.weights / silos)
        self.args = SimpleNamespace(
            mechanism_type="gaussian",
            epsilon=1.0,
            delta=DELTA,
            sensitivity=deviation / math.sqrt(2 * math.log(1.25 / DELTA)),
            max_grad_norm=kind.weights,
        )
        self.frame = (LocalDP if self.local else GlobalDP)(self.args)

    def sent(self, updates: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """As above."""
        if self.local:
            updates = updates * (self.clip / updates.norm(dim=1)).clamp(max=1)[:, None]
            states = [self.frame.add_local_noise({"all": weights + one}) for one in updates]
            return updates.sum(0), torch.stack([one["all"] for one in states]).sub(weights).sum(0)
        states = self.frame.global_clip([(1, {"all": weights + one}) for one in updates])
        total = torch.stack([state["all"] for _, state in states]).sub(weights).sum(0)
        return total, total

    def opened(self, average: Tensor, weights: Tensor, silos: int, draw: Any) -> Tensor:
        """As above."""
        if self.local:
            return average
        return self.frame.add_global_noise({"all": weights + average})["all"] - weights


def measured(
    root: Path, work: Path, *, kind: str, silos: int, mechanism: str, seed: int
) -> dict[str, Any]:
    """All rounds, at epsilon 8 together.

    Returns:
        The accuracy after the last round and after each; the length of the noise in an average over
        that of the average without it, over all rounds, None where training has diverged.

    """
    task, how = Task(root, work, kind, seed), KINDS[kind]
    if silos >= MANY:
        how = replace(how, clip=LONGER * how.clip)
    multiplier = multiplier_for(EPSILON, DELTA, count=ROUNDS) if mechanism != "none" else 0.0
    if mechanism in ("none", "sealed"):
        act: Sealed | FromFedML = Sealed(how.clip, multiplier * how.clip * widened(silos))
    else:
        act = FromFedML(mechanism, how, multiplier, silos)
    torch.manual_seed(seed)  # what FedML draws from
    draw = torch.Generator().manual_seed(104_729 * seed + silos)
    order = torch.randperm(EXAMPLES, generator=draw)
    weights, curve, signal, noise = task.first.clone(), [], 0.0, 0.0
    for _ in range(ROUNDS):
        both = torch.zeros(2, len(weights))
        for updates in task.updates(weights, silos, order, draw):
            both += torch.stack(act.sent(updates, weights))
        plain, average = both / silos
        average = act.opened(average, weights, silos, draw)
        signal += float(plain.square().sum())
        noise += float((average - plain).square().sum())
        weights = weights + average
        curve.append(task.accuracy(weights))
    return {
        "accuracy": curve[-1],
        "curve": curve,
        "dimension": len(weights),
        "clip": how.clip,
        "multiplier": multiplier,
        "noise_over_signal": (noise / signal) ** 0.5 if math.isfinite(noise / signal) else None,
    }
