"""Labels read off the gradient of the last linear layer, one file a way."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from ..knowledge import Knowledge
from .bias import labels_by_bias
from .head import find_head, head_gradients, labels_of_counts
from .magnitude import labels_by_magnitude
from .one import label_of_one
from .sign import labels_by_sign

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


def find_labels(
    model: nn.Module,
    gradients: Mapping[str, Tensor],
    knowledge: Knowledge,
    *,
    recovery: str = "bias",
) -> Tensor:
    """The labels behind each update: as they are known, or else by what it says of the head.

    Args:
        model: whose head it is.
        gradients: name to ``(u, *shape)``.
        knowledge: the attacker's.
        recovery: one of ``RECOVERIES``, for more images than one; of one the label is exact.

    Returns:
        ``(u, n)`` labels: the known ones as they are, or found ones, sorted.

    Raises:
        AttackError: none are known, and there is no such head, or it says nothing.

    Example:
        >>> import torch
        >>> model = nn.Linear(4, 3)
        >>> said = {"weight": torch.ones(1, 3, 4), "bias": torch.tensor([[0.2, -0.5, 0.3]])}
        >>> find_labels(model, said, Knowledge("oblivious", input_shape=(4,), classes=3))
        tensor([[1]])

    """
    if knowledge.labels is not None:
        return knowledge.labels
    weight, bias = head_gradients(model, gradients, knowledge.classes)
    if knowledge.batch == 1:
        return label_of_one(weight, bias)[:, None]
    return RECOVERIES[recovery](weight, bias, knowledge.batch)
