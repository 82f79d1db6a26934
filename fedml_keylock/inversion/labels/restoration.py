"""Labels of a batch by what the model says of each class's mean features."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import AttackError
from .head import check_gradients, labels_of_counts

__all__ = ["labels_by_restoration"]

_NOTHING = 1e-12
"""Of the greatest entry of the bias's gradient: what is not divided by."""


def labels_by_restoration(
    weight: Tensor, bias: Tensor | None, batch: int, *, head: tuple[Tensor, Tensor]
) -> Tensor:
    """The counts that solve what the gradients say, with the model's own predictions.

    Ma, Sun, Cui, Li and Guo, "Instance-wise batch label restoration via gradients in federated
    learning" (iLRG), ICLR 2023. Row i of the weight's gradient over entry i of the bias's is about
    the mean of the features of class i; the head makes of it that class's mean prediction ``p_i``.
    The bias's gradient b then says of the counts k that ``sum_j k_j p_j[i] - k_i = n b_i``, and
    they sum to n. The system is solved by the pseudoinverse, and what is below 0 is 0.

    What it restores of an instance is how many of its class there are, and not which is which. It
    needs no activations that are not negative. It assumes that the images of a class have about the
    same features, that the head's outputs are the model's, and that the model is not sure: of a
    trained one the system says little, and ``labels_by_bias`` finds twice as many.

    It differs from the source in this: the counts are rounded to the nearest that sum to n, where
    the source does not always bring them to the sum.

    Takes, returns and refuses what ``RECOVERIES`` says, and a head without a bias; and beside it
    the head's weight ``(u, classes, features)`` and bias ``(u, classes)``, as each update started.

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
    # (u, j, i): what the head says of class i, of the features of class j
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
        # one at a time, where rounding took it furthest
        error = counts - found
        most = error.masked_fill(counts == 0, -torch.inf).argmax(1)
        least = error.argmin(1)
        counts[over > 0, most[over > 0]] -= 1
        counts[over < 0, least[over < 0]] += 1
    return labels_of_counts(counts)
