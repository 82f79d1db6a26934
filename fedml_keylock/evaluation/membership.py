"""Membership inference on an aggregate: whether a picture was among those of a sum.

Each candidate's gradient is compared with the sum's change, by cosine: members align with it a
little more (Li, Li, Ribeiro, "Effective passive membership inference attacks in federated learning
against overparameterized models", ICLR 2023). A second score is a likelihood ratio, from the
distribution of other pictures' gradients. Results are as Carlini et al. 2022 ask: the area under
the curve, and the true positive rate at a low false positive rate.
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
"""Quantile of the normal distribution for intervals of 95 %."""


@dataclass(frozen=True)
class Membership:
    """How well scores separate members from others of the same distribution.

    Attributes:
        auc: the chance that a member's score is above a non-member's; .5 is chance level.
            With Newcombe's interval (2006, method 5), which has a width even at 1.
        found: the true positive rate, at a threshold that at most `at` of the others exceed. With
            Wilson's interval, for this threshold.
        at: the false positive rate allowed; with fewer than 1 / at others none may exceed.

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
    """Cosine of each candidate's gradient with the gradient that a sum's change stands for.

    Args:
        model: with the weights at the round's start; used in evaluation mode.
        total: the sum's change by parameter name, with a gradient's sign, in any unit:
            ``before - after``.
        images: candidates ``(n, c, h, w)``, as the model's input.
        labels: the candidates' labels, as the loss takes them.
        loss: the loss that silos minimise.

    Returns:
        ``(n,)`` from -1 to 1.

    Raises:
        AttackError: the change has none of the model's parameters, or of other shapes.

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
    """Log-likelihood ratio of a sum of gradients with each candidate's gradient in it to without.

    The rest of the sum is taken as Gaussian: gradients with the mean and covariance of public
    pictures' gradients, and noise. So what all pictures have in common counts little. It is far
    stronger than the cosine if a round is one step.

    Args:
        model: as for `gradient_scores`.
        total: the sum of the members' clipped gradients and the noise, by parameter name.
        images: candidates ``(n, c, h, w)``.
        labels: the candidates' labels.
        public: pictures of the same distribution, none a candidate; best a hundred or more.
        count: number of gradients in the sum.
        clip: the norm that each gradient was clipped to.
        noise: standard deviation of the noise in each entry of the sum.
        loss: the loss that silos minimise.

    Returns:
        ``(n,)`` in nats.

    Raises:
        AttackError: as for `gradient_scores`, or with fewer than four public pictures.

    """
    seen = flattened(model, total)
    own = gradients_of(model, total, images, labels, loss, clip)
    others = gradients_of(model, total, public.images, public.labels, loss, clip)
    return likelihoods(seen, own, others, count=count, noise=noise)


def cosines(total: Tensor, gradients: Tensor) -> Tensor:
    """Cosines ``(n,)`` of a change ``(d,)`` with gradients ``(n, d)``."""
    return nn.functional.cosine_similarity(gradients, total[None], dim=1)


def likelihoods(
    total: Tensor, own: Tensor, others: Tensor, *, count: int, noise: float = 0.0
) -> Tensor:
    """As `likelihood_scores`, from a sum ``(d,)`` and gradients ``(n, d)`` and ``(k, d)``."""
    if len(others) < 4:
        raise AttackError("the covariance of gradients needs four public pictures or more")
    mean = others.mean(0)
    others = others - mean
    # one half estimates the variance outside the span of the other half
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
    """The values given for a model's trained parameters, in the model's order, as one vector.

    AttackError if there are none, or of other shapes.
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
    """The clipped gradient of each picture, ``(n, d)``, by the names that `flattened` uses."""
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
    """Measure how well scores separate a sum's members from others of the same distribution.

    Args:
        members: the members' scores ``(m,)``.
        others: the non-members' scores ``(n,)``.
        at: the false positive rate allowed.

    Raises:
        AttackError: one of them is empty, or a score is not finite.

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
    """Ends of the 95 % interval of a share."""

    def apart(true: float) -> float:
        return abs(share - true) - QUANTILE * math.sqrt(variance(true))

    # at 0 and 1 the deviation is 0
    low = 0.0 if share == 0 else float(brentq(apart, 0.0, min(share, 1 - 1e-9)))
    high = 1.0 if share == 1 else float(brentq(apart, max(share, 1e-9), 1.0))
    return {"mean": share, "low": low, "high": high, "n": count}
