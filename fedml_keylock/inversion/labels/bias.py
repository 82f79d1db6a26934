"""Recovers a batch's labels from the gradient of the head's bias."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import AttackError
from .head import check_gradients, labels_of_counts

__all__ = ["labels_by_bias"]

_SLACK = 1e-3  # of an image: the error of a count by rounding and single precision
_ROUNDING = 1e-6  # of the largest entry: below it counts as 0


def labels_by_bias(weight: Tensor, bias: Tensor | None, batch: int) -> Tensor:
    """The counts that sum to n and make the mean prediction closest to uniform.

    The gradient of the bias is ``p - counts / n`` with p the mean prediction of the batch, as in
    Geng et al., "Towards general deep leakage in federated learning", 2021 (arXiv 2110.09074), and
    Ma et al., "Instance-wise batch label restoration" (iLRG), ICLR 2023. Those estimate p by
    running the model, on other data or on approximate inputs of the head; here only the gradient is
    known. So p is assumed uniform. Of all possible counts, those are taken whose
    ``bias + counts / n`` is closest to 1/C in least squares:

    - p is never negative, so a class occurs at least ``-n * bias`` times;
    - if the head's inputs are not negative, an absent class has no negative entry in its row of the
      weight's gradient (Yin et al. 2021). So a class with one occurs at least once. A class without
      one is assumed absent, which is likely rather than certain.

    The second rule is dropped for an update in which it cannot hold: if more than n classes would
    be present, or if the mean input, by least squares ``sum(bias * weight) / sum(bias ** 2)``, has
    more than a tenth of its mass below 0.

    It assumes an untrained model, whose p is about uniform. A trained model's p follows the labels,
    which makes counts too even. Labels may repeat.

    For arguments, results and errors see ``RECOVERIES``; also refuses a head without a bias.

    Example:
        >>> bias = torch.tensor([[0.25 - 2 / 3, 0.25, 0.25, 0.25 - 1 / 3]])
        >>> labels_by_bias(bias[..., None] * torch.tensor([1.0, 2.0]), bias, 3)
        tensor([[0, 0, 3]])

    """
    check_gradients(weight, bias, batch)
    if bias is None:
        raise AttackError(
            "labels by bias need the gradient of the head's bias, and this head has none; "
            "set recovery: magnitude"
        )
    classes = weight.shape[1]
    bias = bias.double()
    counts, absent = _present(weight.double(), bias, batch)
    wanted = (batch * (1 / classes - bias)).masked_fill(absent, -float("inf"))
    for _ in range(batch):
        short = counts.sum(1) < batch
        nearest = (wanted - counts).argmax(1)
        counts[short, nearest[short]] += 1
    return labels_of_counts(counts)


def _present(weight: Tensor, bias: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """How often each class occurs at least, and whether it is assumed absent: (u, classes)."""
    least = (-batch * bias - _SLACK).ceil().clamp(min=0).long()
    # noise may have raised it above the number of images
    least = least * (least.sum(1, keepdim=True) <= batch)

    greatest = weight.abs().amax((1, 2), keepdim=True)
    negative = (weight < -_ROUNDING * greatest).any(2)
    both = torch.maximum(least, negative.long())
    mean = (bias[:, :, None] * weight).sum(1)  # of the inputs, up to a positive factor
    holds = mean.clamp(max=0).abs().sum(1) <= 0.1 * mean.abs().sum(1)
    holds = (holds & (both.sum(1) <= batch) & both.any(1))[:, None]
    return torch.where(holds, both, least), holds & (both == 0)
