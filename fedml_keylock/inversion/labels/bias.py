"""Labels of a batch by the gradient of the head's bias."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import AttackError
from .head import check_gradients, labels_of_counts

__all__ = ["labels_by_bias"]

_SLACK = 1e-3  # of an image: what rounding and single precision may take from a count
_ROUNDING = 1e-6  # of the greatest entry: what is as good as 0


def labels_by_bias(weight: Tensor, bias: Tensor | None, batch: int) -> Tensor:
    """The counts that sum to n and leave the mean prediction nearest to uniform.

    The gradient of the bias is ``p - counts / n`` with p the mean prediction of the batch, as in
    Geng et al., "Towards general deep leakage in federated learning", 2021 (arXiv 2110.09074), and
    Ma et al., "Instance-wise batch label restoration" (iLRG), ICLR 2023. Those estimate p by
    running the model, on other data or on approximate inputs of the head; here the gradient is all
    there is. So p is thought uniform, and of all counts those are taken whose
    ``bias + counts / n`` is nearest to 1/C in least squares, among those that are possible:

    - p is never negative, so a class occurs at least ``-n * bias`` times;
    - if the head's inputs are not negative, an absent class has no negative entry in its row of the
      weight's gradient (Yin et al. 2021). So a class that has one occurs at least once; and one
      that has none is thought absent, which is likely rather than certain.

    The second is dropped for an update in which it cannot hold: where more than n classes would be
    present, or the mean input, by least squares ``sum(bias * weight) / sum(bias ** 2)``, has more
    than a tenth of its mass below 0.

    It assumes an untrained model, whose p is about uniform; a trained one's p follows the labels,
    which makes counts too even. Labels may repeat.

    Takes, returns and refuses what ``RECOVERIES`` says, and a head without a bias.

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
    """How often each class occurs at least, and whether it is thought absent: (u, classes)."""
    least = (-batch * bias - _SLACK).ceil().clamp(min=0).long()
    # noise may have made it more than there are images
    least = least * (least.sum(1, keepdim=True) <= batch)

    greatest = weight.abs().amax((1, 2), keepdim=True)
    negative = (weight < -_ROUNDING * greatest).any(2)
    both = torch.maximum(least, negative.long())
    mean = (bias[:, :, None] * weight).sum(1)  # of the inputs, up to a factor that is above 0
    holds = mean.clamp(max=0).abs().sum(1) <= 0.1 * mean.abs().sum(1)
    holds = (holds & (both.sum(1) <= batch) & both.any(1))[:, None]
    return torch.where(holds, both, least), holds & (both == 0)
