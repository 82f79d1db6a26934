"""Recovers labels from the gradient of the last linear layer, one file for each method."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ...errors import AttackError
from ..knowledge import Knowledge
from .bias import labels_by_bias
from .head import find_head, head_gradients, labels_of_counts
from .magnitude import labels_by_magnitude
from .one import label_of_one, label_of_smoothed
from .restoration import labels_by_restoration
from .sign import labels_by_sign

__all__ = [
    "ILRG",
    "RECOVERIES",
    "Recovery",
    "find_head",
    "find_labels",
    "head_gradients",
    "label_of_one",
    "label_of_smoothed",
    "labels_by_bias",
    "labels_by_magnitude",
    "labels_by_restoration",
    "labels_by_sign",
    "labels_if_any",
    "labels_of_counts",
    "not_recovered",
]

Recovery = Callable[[Tensor, Tensor | None, int], Tensor]

RECOVERIES: dict[str, Recovery] = {
    "sign": labels_by_sign,
    "magnitude": labels_by_magnitude,
    "bias": labels_by_bias,
}
"""Name to recovery: ``recovery(weight, bias, batch)`` returns ``(u, batch)`` sorted labels.

It takes the gradients of the head's weight ``(u, classes, features)`` and bias ``(u, classes)`` or
None, and the images in each update. An AttackError refuses shapes that do not fit, and a gradient
that is not finite or all zero.
"""
ILRG = "ilrg"
"""The recovery that also needs the head's own weights: `labels_by_restoration`."""


def find_labels(
    model: nn.Module,
    gradients: Mapping[str, Tensor],
    knowledge: Knowledge,
    *,
    recovery: str = "bias",
    started: Callable[[str], Tensor] | None = None,
) -> Tensor:
    """The labels behind each update: the known ones, or else those that the head's gradient shows.

    Args:
        model: with the head.
        gradients: name to ``(u, *shape)``.
        knowledge: the attacker's.
        recovery: one of ``RECOVERIES`` or ``ILRG``, for several images; for one image the label is
            exact.
        started: for ``ILRG``: a parameter's name to ``(u, *shape)``, each update's initial values.

    Returns:
        ``(u, n)`` labels: the known ones unchanged, or recovered ones, sorted.

    Raises:
        AttackError: none are known, and there is no such head, or its gradient shows none, as under
            losses other than cross entropy.

    Example:
        >>> import torch
        >>> model = nn.Linear(4, 3)
        >>> said = {"weight": torch.ones(1, 3, 4), "bias": torch.tensor([[0.2, -0.5, 0.3]])}
        >>> find_labels(model, said, Knowledge("oblivious", input_shape=(4,), classes=3))
        tensor([[1]])

    """
    if knowledge.labels is not None:
        return knowledge.labels
    if (reason := not_recovered(knowledge)) is not None:
        raise AttackError(reason)
    weight, bias = head_gradients(model, gradients, knowledge.classes)
    function = knowledge.loss.function
    rest = float((weight.sum(1).abs().amax(1) / weight.abs().amax((1, 2)).clamp(min=1e-30)).max())
    if isinstance(function, nn.NLLLoss) and rest > _SOFTMAX:
        raise AttackError(
            f"{knowledge.loss.name}: {_ONLY}, which it is only of outputs that end in log_softmax; "
            "set labels: optimise"
        )
    if knowledge.batch == 1:
        smoothing = getattr(function, "label_smoothing", 0.0)
        if smoothing:
            return label_of_smoothed(bias, smoothing)[:, None]
        return label_of_one(weight, bias)[:, None]
    if getattr(function, "reduction", "mean") == "sum":
        weight, bias = weight / knowledge.batch, None if bias is None else bias / knowledge.batch
    if recovery != ILRG:
        return RECOVERIES[recovery](weight, bias, knowledge.batch)
    names = find_head(model, knowledge.classes)
    if names[1] is None or started is None:
        raise AttackError(
            "labels by ilrg need the head's own weight and bias; set recovery: magnitude"
        )
    head = (started(names[0]), started(names[1]))
    return labels_by_restoration(weight, bias, knowledge.batch, head=head)


def labels_if_any(
    model: nn.Module, gradients: Mapping[str, Tensor], knowledge: Knowledge
) -> Tensor:
    """`find_labels`, ``(u, n)``, or -1 for each if the loss hides them.

    For attacks whose inputs do not depend on labels.
    """
    if knowledge.labels is None and not_recovered(knowledge) is not None:
        return torch.full((len(next(iter(gradients.values()))), knowledge.batch), -1)
    return find_labels(model, gradients, knowledge)


_SOFTMAX = 1e-2
"""Largest sum of the rows of a head's gradient before a softmax, relative to its largest entry."""
_ONLY = "labels are read off the gradient of cross entropy"


def not_recovered(knowledge: Knowledge) -> str | None:
    """Why the head's gradient does not show labels under this loss; None if it does.

    Class weights and smoothed labels change each label's part of the gradient. With either, the
    label of one image can still be read.

    Example:
        >>> from ..loss import loss_of
        >>> loss = loss_of("MSELoss()", where="loss")
        >>> not_recovered(Knowledge("oblivious", input_shape=(4,), classes=3, loss=loss))
        'MSELoss(): labels are read off the gradient of cross entropy; set labels: optimise'

    """
    loss, function = knowledge.loss, knowledge.loss.function
    changed = [
        what
        for what, has in (
            ("weighted classes", getattr(function, "weight", None) is not None),
            ("smoothed labels", getattr(function, "label_smoothing", 0.0) > 0),
        )
        if has
    ]
    if not isinstance(function, (nn.CrossEntropyLoss, nn.NLLLoss)) or len(knowledge.outputs) > 1:
        limit = "" if len(knowledge.outputs) == 1 else " of one class an image"
        return f"{loss.name}: {_ONLY}{limit}; set labels: optimise"
    if len(changed) + (knowledge.batch > 1) > 1 and changed:
        of = "several images" if knowledge.batch > 1 else "an image"
        return f"{loss.name}: {_ONLY} of {of} without {' and '.join(changed)}; set labels: optimise"
    return None
