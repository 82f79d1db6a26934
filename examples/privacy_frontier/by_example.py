"""unit: example, in one process: one gradient step a round, of which silos share the noise.

A Poisson batch of all silos' examples together is distributed as each silo's own Poisson batches
are. Each example's gradient is clipped; the sum has the noise that all silos' parts of it come to.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from sets import CHUNK, EXAMPLES, Pictures, accuracy, first_model, pictures, widened
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from fedml_keylock.privacy.accountant import Spending, epsilon_of, multiplier_for
from fedml_keylock.privacy.canaries import directions, estimate

DELTA = 1e-5
CANARIES = 500


@dataclass(frozen=True)
class Way:
    """How to train: public numbers, chosen on one seed.

    Attributes:
        batch: examples a step, in expectation.
        steps: of plain SGD, one a round.
        rate: of learning.
        clip: of an example's gradient; None for no clipping.

    """

    batch: int
    steps: int
    rate: float
    clip: float | None = None

    @property
    def share(self) -> float:
        """The probability that an example is in a batch."""
        return self.batch / EXAMPLES


NOISED = Way(batch=2000, steps=300, rate=2.0, clip=3.0)
PLAIN = Way(batch=250, steps=2400, rate=0.1)
"""What does best without any noise, of as many examples."""


class Canaries:
    """Random directions that are examples too: each a gradient that is as long as the clip."""

    def __init__(self, count: int, size: int, steps: int, share: float, seed: int) -> None:
        every = list(directions(b"frontier %d" % seed, 2 * count, size))
        self.count = count
        self.lines = torch.tensor([one.tolist() for one in every]).view(2 * count, size)
        draw = torch.Generator().manual_seed(seed)
        self.taken = torch.rand(steps, count, generator=draw) < share
        self.seen = torch.zeros(size)

    def sum(self, step: int) -> Tensor:
        """What is added to a step's sum, over the clip: each with a probability of its own."""
        return self.taken[step].float() @ self.lines[: self.count]

    def see(self, total: Tensor) -> None:
        """Add up noised sums: in which of them a canary was nobody knows."""
        self.seen += total

    def found(self) -> dict[str, float]:
        """What they tell, as an estimate of epsilon."""
        along = (self.lines @ self.seen).double().numpy()
        made = estimate(along[: self.count], along[self.count :], DELTA)
        return {"canary": made.epsilon, "canary_low": made.low, "canary_high": made.high}


def gradients_of(net: nn.Module) -> Any:
    """A function of all weights, images and labels that gives each example's gradient."""
    sizes = {name: value.shape for name, value in net.named_parameters()}

    def loss(weights: Tensor, image: Tensor, label: Tensor) -> Tensor:
        pieces = weights.split([size.numel() for size in sizes.values()])
        state = {n: p.view(size) for (n, size), p in zip(sizes.items(), pieces, strict=True)}
        return F.cross_entropy(functional_call(net, state, (image[None],)), label[None])

    return vmap(grad(loss), (None, 0, 0))


def clipped_sum(gradients: Tensor, clip: float) -> Tensor:
    """The sum ``(d,)`` of gradients ``(n, d)``, none of them longer than the clip."""
    return (clip / gradients.norm(dim=1)).clamp(max=1) @ gradients


def train(data: Pictures, way: Way, *, deviation: float, seed: int) -> dict[str, Any]:
    """Train LeNet.

    Args:
        data: of all silos.
        way: to train.
        deviation: of the noise in each entry of a step's sum, over the clip.
        seed: of weights, batches and noise.

    Returns:
        The accuracy on the test set in the end, and after each tenth of the steps; the state; what
        the canaries tell, where there is noise.

    """
    draw = torch.Generator().manual_seed(7919 * seed + 1)
    net = first_model(seed)
    weights = parameters_to_vector(net.parameters()).detach()
    each, curve = gradients_of(net), []
    canaries = Canaries(CANARIES, len(weights), way.steps, way.share, seed) if deviation else None
    for step in range(way.steps):
        rows = (torch.rand(EXAMPLES, generator=draw) < way.share).nonzero()[:, 0]
        total = torch.zeros_like(weights)
        for some in rows.split(CHUNK):
            if way.clip is None:
                net.zero_grad()
                F.cross_entropy(net(data.images[some]), data.labels[some]).backward()
                total += len(some) * torch.cat([p.grad.flatten() for p in net.parameters()])
            else:
                found = each(weights, data.images[some], data.labels[some])
                total += clipped_sum(found, way.clip)
        if canaries is not None:
            noise = deviation * torch.randn(len(total), generator=draw)
            total += way.clip * (canaries.sum(step) + noise)
            canaries.see(total / way.clip)
        weights -= way.rate / way.batch * total
        vector_to_parameters(weights, net.parameters())
        if (step + 1) * 10 // way.steps > step * 10 // way.steps:
            curve.append(accuracy(net, data.test_images, data.test_labels))
    found = {"accuracy": curve[-1], "curve": curve, "state": net.state_dict()}
    return found | (canaries.found() if canaries is not None else {})


def measured(data: Pictures, *, epsilon: float | None, silos: int, seed: int) -> dict[str, Any]:
    """Train at an epsilon that all steps together cost; infinite: clipped; None: as does best."""
    if epsilon is None:
        return train(data, PLAIN, deviation=0.0, seed=seed)
    if epsilon == float("inf"):
        return train(data, NOISED, deviation=0.0, seed=seed)
    way = NOISED
    multiplier = multiplier_for(epsilon, DELTA, rate=way.share, count=way.steps)
    spent = epsilon_of([Spending(multiplier, way.share, way.steps)], DELTA)
    found = train(data, way, deviation=multiplier * widened(silos), seed=seed)
    return found | {"multiplier": multiplier, "epsilon": spent}


def trained(path: Path, root: Path, name: str, epsilon: float | None) -> nn.Module:
    """The net of seed 0 and three silos, trained once and kept in a file."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = measured(pictures(root, name), epsilon=epsilon, silos=3, seed=0)
        save_file({n: v.contiguous() for n, v in found["state"].items()}, path)
    net = first_model(0)
    net.load_state_dict(load_file(path))
    return net
