"""unit: example, in one process: one gradient step a round, of which silos share the noise.

A Poisson batch of all silos' examples together is distributed as Poisson batches of each silo. Of
each example the gradient is clipped; the sum has the noise that m silos' parts of it come to.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from sets import EXAMPLES, Digits, accuracy, first_model
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parameters_to_vector, vector_to_parameters

CHUNK = 250


class Way(NamedTuple):
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
    clip: float | None


class Canaries(NamedTuple):
    """Random directions that are examples too, each a gradient of just the clip.

    Attributes:
        directions: unit vectors ``(k, d)``.
        taken: in which step's batch each was ``(steps, k)``.
        seen: each noised sum's product with each, over the clip ``(steps, k)``.

    """

    directions: Tensor
    taken: Tensor
    seen: Tensor


def train(
    data: Digits, way: Way, *, deviation: float, seed: int, canaries: int = 0
) -> tuple[list[float], Canaries | None]:
    """Train LeNet.

    Args:
        data: of all silos.
        way: to train.
        deviation: of the noise in each entry of a step's sum, over the clip.
        seed: of weights, batches and noise.
        canaries: how many examples there are more, of random gradients.

    Returns:
        The accuracy on the test set after each tenth of the steps; the canaries, if any.

    """
    draw = torch.Generator().manual_seed(7919 * seed + 1)
    net = first_model(seed)
    sizes = {name: value.shape for name, value in net.named_parameters()}
    weights = parameters_to_vector(net.parameters()).detach()
    found, share = [], way.batch / EXAMPLES
    marks = torch.nn.functional.normalize(torch.randn(canaries, len(weights), generator=draw))
    taken = torch.rand(way.steps, canaries, generator=draw) < share
    seen = torch.zeros(way.steps, canaries)

    def loss(vector: Tensor, image: Tensor, label: Tensor) -> Tensor:
        pieces = vector.split([size.numel() for size in sizes.values()])
        state = {n: p.view(size) for (n, size), p in zip(sizes.items(), pieces, strict=True)}
        return F.cross_entropy(functional_call(net, state, (image[None],)), label[None])

    each = vmap(grad(loss), (None, 0, 0))
    for step in range(way.steps):
        rows = (torch.rand(EXAMPLES, generator=draw) < share).nonzero()[:, 0]
        total = torch.zeros_like(weights)
        for some in rows.split(CHUNK):
            gradients = each(weights, data.images[some], data.labels[some])
            if way.clip is None:
                total += gradients.sum(0)
            else:
                total += (way.clip / gradients.norm(dim=1)).clamp(max=1) @ gradients
        if way.clip is not None:
            total += way.clip * (taken[step].float() @ marks)
            total += way.clip * deviation * torch.randn(len(total), generator=draw)
            seen[step] = marks @ total / way.clip
        weights -= way.rate / way.batch * total
        if (step + 1) * 10 // way.steps > step * 10 // way.steps:
            vector_to_parameters(weights, net.parameters())
            with torch.no_grad():
                scores = torch.cat([net(some) for some in data.test_images.split(CHUNK)])
            found.append(accuracy(scores, data.test_labels))
    return found, Canaries(marks, taken, seen) if canaries else None
