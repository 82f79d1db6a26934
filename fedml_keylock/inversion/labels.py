"""Labels read off the gradient of the last linear layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..errors import AttackError

__all__ = [
    "RECOVERIES",
    "Recovery",
    "find_head",
    "find_labels",
    "head_gradients",
    "label_of_one",
    "labels_by_bias",
    "labels_by_magnitude",
    "labels_by_sign",
    "labels_of_counts",
]

_SLACK = 1e-3  # of an image: what rounding and single precision may take from a count
_ROUNDING = 1e-6  # of the greatest entry: what is as good as 0


def find_head(model: nn.Module, classes: int) -> tuple[str, str | None]:
    """Names of the weight and bias of the last linear layer with one output a class.

    Returns:
        ``(weight, bias)``, the bias None if the layer has none.

    Raises:
        AttackError: no linear layer of the model has that many outputs.

    Example:
        >>> find_head(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), classes=3)
        ('1.weight', '1.bias')

    """
    heads = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == classes
    ]
    if not heads:
        raise AttackError(
            f"labels cannot be recovered: the model has no linear layer with {classes} outputs; "
            "give Knowledge.labels"
        )
    name, module = heads[-1]
    prefix = f"{name}." if name else ""
    return f"{prefix}weight", None if module.bias is None else f"{prefix}bias"


def head_gradients(
    model: nn.Module, gradients: Mapping[str, Tensor], classes: int
) -> tuple[Tensor, Tensor | None]:
    """The gradients of the head, of all that an update gives.

    Args:
        model: whose head it is.
        gradients: name to ``(u, *shape)``.
        classes: how many outputs the head has.

    Returns:
        ``(u, classes, features)`` of the weight; ``(u, classes)`` of the bias or None.

    Raises:
        AttackError: the model has no such head, or the update does not hold it.

    Example:
        >>> model = nn.Linear(4, 3, bias=False)
        >>> head_gradients(model, {"weight": torch.ones(1, 3, 4)}, 3)[0].shape
        torch.Size([1, 3, 4])

    """
    weight, bias = find_head(model, classes)
    for name in filter(None, (weight, bias)):
        if name not in gradients:
            raise AttackError(f"labels cannot be recovered: {name} is not in the update")
    return gradients[weight], None if bias is None else gradients[bias]


def label_of_one(weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The label of each update that was computed from one image (iDLG, Zhao et al. 2020).

    With softmax and cross entropy the gradient of logit i is ``p_i - y_i``: negative for the true
    class alone. It is the bias's gradient itself; and the weight's gradient is its outer product
    with the head's input, so the true class's row points against the rows of all others.

    Args:
        weight: ``(u, classes, features)`` gradient of the head's weight.
        bias: ``(u, classes)`` gradient of the head's bias.

    Returns:
        ``(u,)`` labels.

    Example:
        >>> import torch
        >>> label_of_one(torch.tensor([[[0.2, -0.1], [-0.4, 0.2], [0.2, -0.1]]]))
        tensor([1])

    """
    if bias is not None:
        return bias.argmin(1)
    products = weight @ weight.transpose(1, 2)
    # the diagonal is a row's own square: it says nothing of the others
    products = products - torch.diag_embed(products.diagonal(dim1=1, dim2=2))
    return products.sum(2).argmin(1)


def find_labels(
    model: nn.Module,
    gradients: Mapping[str, Tensor],
    *,
    classes: int,
    batch: int = 1,
    recovery: str = "bias",
) -> Tensor:
    """The labels behind each update, from what it says of the head.

    Args:
        model: whose head it is.
        gradients: name to ``(u, *shape)``.
        classes: how many outputs the head has.
        batch: images in each update, n.
        recovery: one of ``RECOVERIES``, for more than one; of one image the label is exact.

    Returns:
        ``(u, n)`` labels, sorted.

    Raises:
        AttackError: there is no such head, or it says nothing.

    Example:
        >>> model = nn.Linear(4, 3)
        >>> said = {"weight": torch.ones(1, 3, 4), "bias": torch.tensor([[0.2, -0.5, 0.3]])}
        >>> find_labels(model, said, classes=3)
        tensor([[1]])

    """
    weight, bias = head_gradients(model, gradients, classes)
    if batch == 1:
        return label_of_one(weight, bias)[:, None]
    return RECOVERIES[recovery](weight, bias, batch)


def labels_of_counts(counts: Tensor) -> Tensor:
    """Sorted labels from how often each class occurs.

    Args:
        counts: ``(u, classes)`` integers; every row sums to the same n.

    Returns:
        ``(u, n)`` labels, sorted.

    Raises:
        AttackError: a count is below 0, or the rows' sums differ.

    Example:
        >>> import torch
        >>> labels_of_counts(torch.tensor([[2, 0, 1], [0, 3, 0]]))
        tensor([[0, 0, 2],
                [1, 1, 1]])

    """
    sums = counts.sum(1)
    if (counts < 0).any() or (sums != sums[:1]).any():
        raise AttackError("counts must not be below 0 and must sum to the same batch in every row")
    updates, classes = counts.shape
    labels = torch.arange(classes, device=counts.device).repeat(updates)
    return labels.repeat_interleave(counts.flatten()).view(updates, -1)


def labels_by_sign(weight: Tensor, bias: Tensor | None, batch: int) -> Tensor:
    """The n classes whose row of the weight's gradient reaches furthest below 0.

    Yin et al., "See through gradients", CVPR 2021 (arXiv 2104.07586), section on batch label
    restoration: ``argsort(min over features)[:n]``.

    It assumes that the head's inputs are not negative (ReLU, sigmoid), for then only a class that
    is present can have a negative entry; and that **no label occurs twice**: the n labels that it
    returns always differ. Training does not matter to it.

    Args:
        weight: ``(u, classes, features)`` gradient of the head's weight.
        bias: ``(u, classes)`` gradient of the head's bias; not used.
        batch: images in each update, n.

    Returns:
        ``(u, n)`` labels, sorted.

    Raises:
        AttackError: there are fewer classes than images, so that some label must repeat; or
            shapes do not fit, a gradient is not finite or all zero.

    Example:
        >>> import torch
        >>> gradient = torch.tensor([[[0.2, -0.5], [0.1, 0.3], [-0.4, 0.2]]])
        >>> labels_by_sign(gradient, None, 2)
        tensor([[0, 2]])

    """
    _check(weight, bias, batch)
    if batch > weight.shape[1]:
        raise AttackError(
            f"labels by sign never repeat: a batch of {batch} cannot have that many of "
            f"{weight.shape[1]} classes; recover them by magnitude or by bias"
        )
    return weight.amin(2).argsort(dim=1, stable=True)[:, :batch].sort(1).values


def labels_by_magnitude(weight: Tensor, bias: Tensor | None, batch: int) -> Tensor:
    """Label by label, taking off the gradient what one label is thought to add to it.

    Wainakh et al., "User-level label leakage from gradients", PoPETs 2022(2) (arXiv 2105.09369),
    the attack named LLG, which has the shared gradient alone. With ``g`` the row sums of the
    weight's gradient and C classes, the impact of one label is ``m = (1 + 1/C) / n`` times the sum
    of ``g`` where negative; the offset s, which the paper's stronger attackers measure on the model
    or on other data, is 0. Every class with a negative ``g`` is present and is taken once; then,
    until there are n, the class with the least ``g``; m is subtracted whenever a class is taken.

    It assumes that the head's inputs are not negative, and about the same size in all images, and
    that the model is untrained. Labels may repeat. The more of the classes are present the more m
    is too small, since a present class whose ``g`` is not negative adds nothing to it.

    Args:
        weight: ``(u, classes, features)`` gradient of the head's weight.
        bias: ``(u, classes)`` gradient of the head's bias; not used.
        batch: images in each update, n.

    Returns:
        ``(u, n)`` labels, sorted.

    Raises:
        AttackError: shapes do not fit, a gradient is not finite or all zero.

    Example:
        >>> import torch
        >>> gradient = torch.tensor([[[-0.4, -0.5], [0.3, 0.3], [0.3, 0.3], [-0.2, -0.1]]])
        >>> labels_by_magnitude(gradient, None, 3)
        tensor([[0, 0, 3]])

    """
    _check(weight, bias, batch)
    left = weight.sum(2)
    updates, classes = left.shape
    impact = left.clamp(max=0).sum(1) / batch * (1 + 1 / classes)
    negative = left < 0
    counts = torch.zeros_like(left, dtype=torch.long)
    rows = torch.arange(updates, device=left.device)
    for _ in range(batch):
        fresh = negative & (counts == 0)
        allowed = fresh | ~fresh.any(1, keepdim=True)
        taken = left.masked_fill(~allowed, float("inf")).argmin(1)
        counts[rows, taken] += 1
        left[rows, taken] -= impact
    return labels_of_counts(counts)


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

    Args:
        weight: ``(u, classes, features)`` gradient of the head's weight.
        bias: ``(u, classes)`` gradient of the head's bias.
        batch: images in each update, n.

    Returns:
        ``(u, n)`` labels, sorted.

    Raises:
        AttackError: there is no bias; shapes do not fit, a gradient is not finite or all zero.

    Example:
        >>> import torch
        >>> bias = torch.tensor([[0.25 - 2 / 3, 0.25, 0.25, 0.25 - 1 / 3]])
        >>> labels_by_bias(bias[..., None] * torch.tensor([1.0, 2.0]), bias, 3)
        tensor([[0, 0, 3]])

    """
    _check(weight, bias, batch)
    if bias is None:
        raise AttackError(
            "labels by bias need the gradient of the head's bias, and this head has none; "
            "recover them by magnitude"
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


Recovery = Callable[[Tensor, Tensor | None, int], Tensor]

RECOVERIES: dict[str, Recovery] = {
    "sign": labels_by_sign,
    "magnitude": labels_by_magnitude,
    "bias": labels_by_bias,
}
"""Name to recovery: ``recovery(weight, bias, batch)`` returns ``(u, batch)`` sorted labels."""


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


def _check(weight: Tensor, bias: Tensor | None, batch: int) -> None:
    if weight.ndim != 3:
        raise AttackError(
            f"the head's weight gradient is {tuple(weight.shape)}: not (updates, classes, features)"
        )
    if bias is not None and bias.shape != weight.shape[:2]:
        raise AttackError(
            f"the head's bias gradient is {tuple(bias.shape)} where "
            f"{tuple(weight.shape[:2])} is needed"
        )
    if batch < 1:
        raise AttackError(f"a batch has at least 1 image, not {batch}")
    for name, gradient in (("weight", weight), ("bias", bias)):
        if gradient is not None and not gradient.isfinite().all():
            raise AttackError(f"the head's {name} gradient has NaN or infinite values")
    if not weight.flatten(1).any(1).all():
        raise AttackError("the head's weight gradient is all zero: it says nothing of the labels")
