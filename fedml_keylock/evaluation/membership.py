"""Whether a picture was in a sum: what an average that everybody has tells of who is in it.

The gradient of a candidate is held against the sum's change: members point its way a little more
(Li, Li, Ribeiro, "Effective passive membership inference attacks in federated learning against
overparameterized models", ICLR 2023); or as likelihoods, against what others' gradients are like.
In numbers as Carlini et al. 2022 ask for: beside the area under the curve, how many members are
found while next to no other is taken for one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass

import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from ..errors import AttackError
from ..inversion import CROSS_ENTROPY, Loss, PublicData
from ..inversion.outputs import logits_of
from ..tensors import copy_of
from .leakage import Interval
from .wording import interval_text

__all__ = [
    "Membership",
    "cosines",
    "flattened",
    "gradient_scores",
    "gradients_of",
    "likelihood_scores",
    "likelihoods",
    "membership",
]

QUANTILE = 1.96
"""Of the normal distribution, for intervals of 95 %."""


@dataclass(frozen=True)
class Membership:
    """How well scores tell members from others of their kind.

    Attributes:
        auc: the chance that a member's score is above another's; .5 for none. With Newcombe's
            interval (2006, method 5), which has a width at 1, too.
        found: the share of members above a threshold that at most `at` of the others are above.
            With Wilson's interval, for this threshold.
        at: as asked; with fewer than 1 / at others none of them is above it.

    """

    auc: Interval
    found: Interval
    at: float

    def __str__(self) -> str:
        found = interval_text(self.found, percent=True)
        return f"AUC {interval_text(self.auc)}, {found} found at {100 * self.at:g} % false ones"


def gradient_scores(
    model: nn.Module,
    total: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    loss: Loss = CROSS_ENTROPY,
) -> Tensor:
    """The cosine of each candidate's gradient with the one that a sum's change stands for.

    Args:
        model: with the weights that the round began with. Its evaluation mode counts.
        total: the sum's change by the parameters' names, as gradients have it, in any unit:
            ``before - after``.
        images: candidates ``(n, c, h, w)``, as the model is fed them.
        labels: theirs, as the loss takes them.
        loss: that silos minimise.

    Returns:
        ``(n,)`` from -1 to 1.

    Raises:
        AttackError: the change has none of the model's parameters, or other shapes.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> x, y = torch.eye(3), torch.tensor([0, 1, 0])
        >>> nn.functional.cross_entropy(net(x[:1]), y[:1]).backward()
        >>> scores = gradient_scores(net, {n: p.grad for n, p in net.named_parameters()}, x, y)
        >>> round(float(scores[0]), 3), bool((scores[1:] < 0.9).all())
        (1.0, True)

    """
    seen = flattened(model, total)
    return cosines(seen, gradients_of(model, total, images, labels, loss))


def likelihood_scores(
    model: nn.Module,
    total: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    public: PublicData,
    *,
    count: int,
    clip: float = math.inf,
    noise: float = 0.0,
    loss: Loss = CROSS_ENTROPY,
) -> Tensor:
    """How much likelier a sum of gradients is with each candidate's in it than without.

    The logarithm, if what else is in the sum is Gaussian: gradients with the mean and covariance of
    public pictures', and noise. So what all pictures of a kind have in common counts for little. By
    far the stronger attack where a round is one step.

    Args:
        model: as for `gradient_scores`.
        total: the sum of the members' gradients, each clipped, and of the noise, by the
            parameters' names.
        images: candidates ``(n, c, h, w)``.
        labels: theirs.
        public: of the same distribution, none of them a candidate: a hundred or more.
        count: of gradients in the sum.
        clip: what the norm of each was clipped to.
        noise: the standard deviation of the noise in each entry of the sum.
        loss: that silos minimise.

    Returns:
        ``(n,)`` in nats.

    Raises:
        AttackError: as for `gradient_scores`, or there are fewer than four public pictures.

    """
    seen = flattened(model, total)
    own = gradients_of(model, total, images, labels, loss, clip)
    others = gradients_of(model, total, public.images, public.labels, loss, clip)
    return likelihoods(seen, own, others, count=count, noise=noise)


def cosines(total: Tensor, gradients: Tensor) -> Tensor:
    """Of a change ``(d,)`` with each of some gradients ``(n, d)``."""
    return nn.functional.cosine_similarity(gradients, total[None], dim=1)


def likelihoods(
    total: Tensor, own: Tensor, others: Tensor, *, count: int, noise: float = 0.0
) -> Tensor:
    """As `likelihood_scores`, of a sum ``(d,)`` and of gradients ``(n, d)`` and ``(k, d)``."""
    if len(others) < 4:
        raise AttackError("the covariance of gradients needs four public pictures or more")
    mean = others.mean(0)
    others = others - mean
    # what is outside of the span of half of them, the other half tells
    half, rest = others.tensor_split(2)
    basis = torch.linalg.svd(half, full_matrices=False).Vh
    outside = float((rest - rest @ basis.T @ basis).square().sum(1).mean())
    _, sizes, basis = torch.linalg.svd(others, full_matrices=False)
    floor = noise**2 + count * outside / others.shape[1]
    spread = count * sizes.square() / len(others) + floor
    # the inverse of the covariance: 1 / floor, and less within the basis
    less = 1 / floor - 1 / spread
    moved, own = total - count * mean, own - mean
    inside = own @ basis.T
    product = own @ moved / floor - (inside * less) @ (basis @ moved)
    square = own.square().sum(1) / floor - (inside.square() * less).sum(1)
    scores: Tensor = product - square / 2
    return scores


def flattened(model: nn.Module, values: Mapping[str, Tensor]) -> Tensor:
    """What is given of a model's parameters that train, in their order, as one vector.

    An AttackError where nothing is, or of other shapes.
    """
    own = {n: p for n, p in model.named_parameters() if n in values and p.requires_grad}
    if not own or any(values[name].shape != own[name].shape for name in own):
        raise AttackError("the sum's change is not of this model's parameters")
    return torch.cat([values[name].detach().flatten().float() for name in own])


def gradients_of(
    model: nn.Module,
    names: Container[str],
    images: Tensor,
    labels: Tensor,
    loss: Loss,
    clip: float = math.inf,
) -> Tensor:
    """The gradient of each picture, clipped, ``(n, d)``: of what names there are `flattened`."""
    copy = copy_of(model).eval()
    own = [p for n, p in copy.named_parameters() if n in names and p.requires_grad]
    rows = []
    for image, label in zip(images, labels, strict=True):
        value = loss(logits_of(copy(image[None])), label[None])
        found = torch.autograd.grad(value, own, allow_unused=True, materialize_grads=True)
        flat = torch.cat([part.flatten().float() for part in found])
        rows.append(flat * min(1.0, clip / max(float(flat.norm()), 1e-30)))
    return torch.stack(rows)


def membership(members: Tensor, others: Tensor, *, at: float = 0.01) -> Membership:
    """How well scores tell those that are in a sum from others of the same distribution.

    Args:
        members: the scores of what is in it, ``(m,)``.
        others: of what is not, ``(n,)``.
        at: the share of the others that may be taken for members.

    Raises:
        AttackError: there are none of either, or a score is not finite.

    Example:
        >>> print(membership(torch.tensor([0.9, 0.8]), torch.tensor([0.1, 0.2, 0.85])))
        AUC 0.83 [0.31, 0.98], 50.0 % [9.5, 90.5] found at 1 % false ones

    """
    m, n = len(members), len(others)
    if not m or not n or not torch.cat([members, others]).isfinite().all():
        raise AttackError("membership needs finite scores of members and of others")
    ordered = others.sort().values
    below, up_to = (torch.searchsorted(ordered, members, right=right) for right in (False, True))
    auc = float((below + up_to).double().mean()) / (2 * n)
    found = float((members > ordered[n - 1 - math.floor(at * n)]).double().mean())
    half = (m + n) / 2 - 1

    def spread(true: float) -> float:
        inner = 1 + half * ((1 - true) / (2 - true) + true / (1 + true))
        return true * (1 - true) * inner / (m * n)

    def wilson(true: float) -> float:
        return true * (1 - true) / m

    return Membership(_interval(auc, spread, m), _interval(found, wilson, m), at)


def _interval(share: float, variance: Callable[[float], float], count: int) -> Interval:
    """The true shares that what was found is within 1.96 deviations of."""

    def apart(true: float) -> float:
        return abs(share - true) - QUANTILE * math.sqrt(variance(true))

    # at 0 and 1 themselves nothing varies
    low = 0.0 if share == 0 else float(brentq(apart, 0.0, min(share, 1 - 1e-9)))
    high = 1.0 if share == 1 else float(brentq(apart, max(share, 1e-9), 1.0))
    return {"mean": share, "low": low, "high": high, "n": count}
