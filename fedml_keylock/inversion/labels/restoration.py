"""Recovers a batch's labels from the model's predictions for each class's mean features."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import AttackError
from .head import check_gradients, labels_of_counts

__all__ = ["labels_by_restoration"]

_NOTHING = 1e-12
"""Smallest divisor, relative to the largest entry of the bias's gradient."""


def labels_by_restoration(
    weight: Tensor, bias: Tensor | None, batch: int, *, head: tuple[Tensor, Tensor]
) -> Tensor:
    """The counts that solve the gradients' equations, with the model's own predictions.

    Ma, Sun, Cui, Li and Guo, "Instance-wise batch label restoration via gradients in federated
    learning" (iLRG), ICLR 2023. Row i of the weight's gradient divided by entry i of the bias's is
    about the mean features of class i; the head gives that class's mean prediction ``p_i``. The
    bias's gradient b then states of the counts k that ``sum_j k_j p_j[i] - k_i = n b_i``, and they
    sum to n. The pseudoinverse solves this system, and negative counts become 0.

    It restores how many instances of each class there are, not which is which. It needs no
    non-negative activations. It assumes that the images of a class have similar features, that the
    head's outputs are the model's, and that the model is not confident: for a trained one the
    system shows little, and ``labels_by_bias`` finds twice as many.

    Difference from the source: the counts are rounded to the closest ones that sum to n; the
    source's do not always.

    For arguments, results and errors see ``RECOVERIES``; also refuses a head without a bias. It
    also takes the head's weight ``(u, classes, features)`` and bias ``(u, classes)``, from which
    each update started.

    Example:
        >>> from torch.nn.functional import cross_entropy, linear
        >>> w, b = torch.eye(4).requires_grad_(), torch.zeros(4, requires_grad=True)
        >>> features = torch.tensor([[2.0, 0, 0, 1], [2.0, 0, 0, 1], [0, 0, 1.0, 0]])
        >>> loss = cross_entropy(linear(features, w, b), torch.tensor([0, 0, 3]))
        >>> gradients = [g[None] for g in torch.autograd.grad(loss, (w, b))]
        >>> labels_by_restoration(*gradients, 3, head=(w[None], b[None]))
        tensor([[0, 0, 3]])

    """
    check_gradients(weight, bias, batch)
    if bias is None:
        raise AttackError(
            "labels by ilrg need the gradient of the head's bias, and this head has none; "
            "set recovery: magnitude"
        )
    weight, bias = weight.double(), bias.double()
    own, shift = (part.detach().double() for part in head)
    some = bias.abs() > _NOTHING * bias.abs().amax(1, keepdim=True)
    features = weight / bias.where(some, torch.inf)[..., None]
    # (u, j, i): the head's prediction of class i for the features of class j
    predicted = (features @ own.transpose(1, 2) + shift[:, None]).softmax(2)
    classes = bias.shape[1]
    system = predicted.transpose(1, 2) - torch.eye(classes).to(bias)
    system = torch.cat([torch.ones_like(bias)[:, None], system], dim=1)
    said = torch.cat([torch.full_like(bias[:, :1], batch), batch * bias], dim=1)
    found = (torch.linalg.pinv(system) @ said[..., None])[..., 0].clamp(min=0)
    counts = found.round().clamp(max=batch).long()
    for _ in range(batch * classes):
        over = counts.sum(1) - batch
        if not over.any():
            break
        # one at a time, where rounding changed it most
        error = counts - found
        most = error.masked_fill(counts == 0, -torch.inf).argmax(1)
        least = error.argmin(1)
        counts[over > 0, most[over > 0]] -= 1
        counts[over < 0, least[over < 0]] += 1
    return labels_of_counts(counts)
