"""Computes the input of a first linear layer exactly from its gradient, without a search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import AttackError
from ..settings import checked
from ..tensors import under
from ..types import ClientUpdate, Reconstruction
from .base import SEARCH, check_level, check_one_step
from .engine.layer_inputs import first_linear
from .engine.observe import observe
from .knowledge import Knowledge
from .labels import labels_if_any

__all__ = ["AnalyticAttack", "linear_input"]


def linear_input(weight_gradient: Tensor, bias_gradient: Tensor) -> Tensor:
    """The single input vector of a linear layer, from its gradients.

    With ``y = W x + b`` the gradient of row i is ``(dL/dy_i) x`` and that of its bias ``dL/dy_i``.
    So each row's ratio is the input, for any model behind the layer (Phong et al., IEEE TIFS 13(5),
    2018; Geiping et al., NeurIPS 2020, proposition 3.1). This is the least squares solution over
    all rows, ``sum(bias * weight) / sum(bias ** 2)``, which gives rows with small gradients, and so
    large rounding errors, little weight. For several vectors it is a mixture, equal to none of
    them.

    From gradients ``(u, out, in)`` and ``(u, out)``, inputs ``(u, in)``.

    Raises:
        AttackError: shapes do not fit, a value is not finite, or a bias gradient is all zero.

    Example:
        >>> bias = torch.tensor([[0.5, -2.0]])
        >>> linear_input(bias[..., None] * torch.tensor([0.1, 0.2, 0.3]), bias)
        tensor([[0.1000, 0.2000, 0.3000]])

    """
    if weight_gradient.ndim != 3 or weight_gradient.shape[:2] != bias_gradient.shape:
        raise AttackError(
            f"gradients of a linear layer are (u, out, in) and (u, out), not "
            f"{tuple(weight_gradient.shape)} and {tuple(bias_gradient.shape)}"
        )
    for name, gradient in (("weight", weight_gradient), ("bias", bias_gradient)):
        if not gradient.isfinite().all():
            raise AttackError(f"the linear layer's {name} gradient has NaN or infinite values")
    greatest = bias_gradient.abs().amax(1, keepdim=True)
    if not greatest.all():
        raise AttackError(
            "the linear layer's bias gradient is all zero: its input cannot be read off"
        )
    # scaled, because squares of small gradients could underflow
    bias = bias_gradient.double() / greatest
    weight = weight_gradient.double() / greatest[..., None]
    found = (bias[..., None] * weight).sum(1) / bias.square().sum(1, keepdim=True)
    return found.to(weight_gradient.dtype)


@checked
class AnalyticAttack:
    """The input of a model whose first layer is linear, exactly, from that layer's gradient.

    The input is a flattened image, or a row of a table, whose categorical columns need no special
    treatment. The rest of the model does not matter, not even an activation before the loss, as in
    FedML's logistic regression: it does not change the ratio of weight and bias gradient.

    A lock behind the first layer does not help: its scale and shift change the gradients of the
    layer's weight and bias alike, so their ratio stays the input.

    Attributes:
        name: name of the attack in reports.

    Example:
        >>> AnalyticAttack().name
        'analytic'

    """

    name: str = "analytic"

    needs: ClassVar[frozenset[str]] = frozenset()
    """Nothing: it divides the sent gradients."""
    uses: ClassVar[frozenset[str]] = frozenset()
    """Nothing: it does not search, and no lock affects it."""

    def reconstruct(
        self,
        updates: Sequence[ClientUpdate],
        model: nn.Module,
        *,
        knowledge: Knowledge,
        generator: torch.Generator,
        progress: Callable[[int, int], None] | None = None,
    ) -> Reconstruction:
        """Divide the gradients of the first layer.

        The cost is the distance of the weight's gradient from the bias's times the input, squared
        and
        relative: about 0, unless the update contains more than one input. It is the only entry of
        the history, and nothing can diverge. A clipped gradient is still exact, because the factor
        cancels. A pruned, quantised or noised one is not. Nor is one so small that the weights'
        precision rounded it, as for a confident model. The cost then shows it.

        It takes updates of one plain SGD step on one image or row, at level ``oblivious``, and
        raises an AttackError for others.
        """
        check_level(self, knowledge.level)
        if knowledge.batch > 1:
            raise AttackError(
                f"{self.name} needs a batch of 1, not {knowledge.batch}: of more inputs the ratio "
                "of the gradients is a mixture; use an attack that searches"
            )
        check_one_step(self.name, knowledge, instead=SEARCH)
        observation = observe(updates, model, knowledge)
        name = first_linear(observation.model, knowledge)
        weight, bias = (observation.targets[under(name, part)] for part in ("weight", "bias"))
        labels = labels_if_any(observation.model, observation.targets, knowledge)
        found = linear_input(weight, bias)
        rest = weight - bias[..., None] * found[:, None]
        cost = rest.square().sum((1, 2)) / weight.square().sum((1, 2)).clamp(
            min=torch.finfo(weight.dtype).tiny
        )
        if progress is not None:
            progress(1, 1)
        return Reconstruction(
            images=found.view(-1, 1, *knowledge.input_shape).clamp(*knowledge.bounds),
            labels=labels.to(weight.device),
            cost=cost,
            history=cost[None],
            diverged=torch.zeros(len(found), dtype=torch.long, device=found.device),
            attack=self.name,
            knowledge=knowledge.level,
        )
