"""The objective of many candidates at once, and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from ..errors import AttackError
from .exact import ScaleAfterNorm, scales_in_norm
from .knowledge import Knowledge
from .prior import Prior
from .statistics import Statistics, batch_statistics

__all__ = ["Layout", "Objective", "probe"]

Cost = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class Layout:
    """How one candidate lies in a row: the images first, then whatever else is optimised.

    Attributes:
        shapes: name to shape, in order.

    Example:
        >>> layout = Layout({"images": (1, 1, 2, 2), "labels": (1, 3)})
        >>> {name: tuple(part.shape) for name, part in layout.split(torch.zeros(5, 7)).items()}
        {'images': (5, 1, 1, 2, 2), 'labels': (5, 1, 3)}

    """

    shapes: dict[str, tuple[int, ...]]

    @property
    def sizes(self) -> list[int]:
        """Columns of each part."""
        return [prod(shape) for shape in self.shapes.values()]

    def split(self, rows: Tensor) -> dict[str, Tensor]:
        """``(b, d)`` -> name to ``(b, *shape)``, views."""
        parts = torch.split(rows, self.sizes, dim=1)
        return {
            name: part.reshape(len(rows), *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def join(self, parts: dict[str, Tensor]) -> Tensor:
        """The inverse of ``split``."""
        return torch.cat([parts[name].flatten(1) for name in self.shapes], dim=1)


@dataclass(frozen=True)
class Objective:
    """Cost plus prior of b candidates, each against its own target.

    Attributes:
        model: a functional module.
        layout: what is optimised: ``images`` ``(n, c, h, w)``, perhaps ``labels`` ``(n, classes)``
            as logits, and the secrets by name.
        state: ``(b,)`` row of each candidate in ``public`` and ``fixed``.
        public: what gradients are taken for, name to ``(g, *shape)``.
        fixed: other shared state, name to ``(g, *shape)``.
        given: private state that is known, name to ``(b, *shape)``.
        labels: ``(b, n)`` integers, or None if they are optimised.
        targets: name to ``(b, *shape)``.
        weights: ``(b, layers)`` weights of the targets.
        cost: see ``cost.py``.
        prior: see ``prior.py``.
        update: ``(b,)`` the update that each candidate explains, or None where no prior asks.
        statistics: of BatchNorm inputs, as far as they are known: name to two ``(b, c)``.

    """

    model: nn.Module
    layout: Layout
    state: Tensor
    public: dict[str, Tensor]
    fixed: dict[str, Tensor]
    given: dict[str, Tensor]
    labels: Tensor | None
    targets: dict[str, Tensor]
    weights: Tensor
    cost: Cost
    prior: Prior = field(default_factory=Prior)
    update: Tensor | None = None
    statistics: Statistics = field(default_factory=dict)

    def select(self, rows: Tensor) -> Objective:
        """The same for some of the candidates."""
        return replace(
            self,
            state=self.state[rows],
            given={name: value[rows] for name, value in self.given.items()},
            labels=None if self.labels is None else self.labels[rows],
            targets={name: value[rows] for name, value in self.targets.items()},
            weights=self.weights[rows],
            update=None if self.update is None else self.update[rows],
            statistics={n: (m[rows], v[rows]) for n, (m, v) in self.statistics.items()},
        )

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """``(b, d)`` candidates -> ``(b,)`` costs and the ``(b, d)`` gradient of cost and prior."""
        rows = rows.detach().requires_grad_()
        parts = self.layout.split(rows)
        images = parts.pop("images")
        labels = parts.pop("labels").softmax(-1) if self.labels is None else self.labels
        gradients, found = self._gradients(images, labels, {**parts, **self.given})
        cost = self.cost(gradients, list(self.targets.values()), self.weights)
        update = torch.arange(len(rows), device=rows.device) if self.update is None else self.update
        objective = (cost + self.prior(images, update, found, self.statistics)).sum()
        # the outer derivative runs outside of vmap, on the batched tensors themselves: a quarter to
        # a third faster than vmap over both derivatives, and the rows are independent either way
        (gradient,) = torch.autograd.grad(objective, rows)
        return cost.detach(), gradient

    @cached_property
    def _exact(self) -> Callable[[], AbstractContextManager[Any]]:
        """Makes what the model must run under for its gradient to be differentiated again."""
        return ScaleAfterNorm if scales_in_norm(self.model) else nullcontext

    def _gradients(
        self, images: Tensor, labels: Tensor, private: dict[str, Tensor]
    ) -> tuple[list[Tensor], Statistics]:
        """What each candidate would have sent, ``(b, *shape)`` a target; and its statistics."""
        public, fixed, shared = self.public, self.fixed, None
        if len(next(iter(public.values()))) == 1:
            # one set of weights for all keeps the convolutions large
            public = {name: value[0] for name, value in public.items()}
            fixed = {name: value[0] for name, value in fixed.items()}
        else:
            shared = 0
            public = {name: value[self.state] for name, value in public.items()}
            fixed = {name: value[self.state] for name, value in fixed.items()}

        def loss(
            public: dict[str, Tensor],
            fixed: dict[str, Tensor],
            private: dict[str, Tensor],
            images: Tensor,
            labels: Tensor,
        ) -> tuple[Tensor, Statistics]:
            with self._exact(), batch_statistics(self.model, self.statistics) as found:
                logits = functional_call(self.model, {**public, **fixed, **private}, (images,))
            return cross_entropy(logits, labels), found

        gradients: dict[str, Tensor]
        gradients, found = vmap(grad(loss, has_aux=True), in_dims=(shared, shared, 0, 0, 0))(
            public, fixed, private, images, labels
        )
        return [gradients[name] for name in self.targets], found


def probe(objective: Objective, knowledge: Knowledge) -> None:
    """Run the model once, so that what does not fit it is said in the attack's own words.

    Raises:
        AttackError: it takes no such images, gives no such logits, or does not run a layer whose
            statistics are known.

    """
    like = next(iter(objective.public.values()))
    state = {name: value[0] for name, value in {**objective.public, **objective.fixed}.items()}
    images = like.new_zeros(knowledge.batch, *knowledge.input_shape)
    try:
        with torch.no_grad(), batch_statistics(objective.model, objective.statistics) as found:
            logits = functional_call(objective.model, state, (images,))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise AttackError(
            f"the model does not take images of shape {tuple(images.shape)}: {reason}"
        ) from error
    expected = (knowledge.batch, knowledge.classes)
    if not isinstance(logits, Tensor) or logits.shape != expected:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise AttackError(f"the model gives {got} where logits {expected} are needed")
    idle = sorted(set(objective.statistics) - set(found))
    if idle:
        raise AttackError(f"the model does not run {', '.join(idle)}: it has no statistics")
