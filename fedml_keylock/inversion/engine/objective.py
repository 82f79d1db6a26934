"""Computes the objective of many candidates at once, and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from ...tensors import copied
from ..knowledge import Knowledge, Statistics
from ..prior import Prior
from ..unknowns.pixels import Parametrisation, Pixels
from .evaluate import one_by_one, run, slope
from .local_training import replay
from .norm_statistics import batch_statistics

__all__ = ["SURROGATE", "Layout", "Objective"]

SURROGATE = "surrogate"
"""Name of the searched place between the states before and after."""

Cost = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class Layout:
    """The layout of a candidate as a row: images first, then other unknowns.

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
        """Number of columns of each part."""
        return [prod(shape) for shape in self.shapes.values()]

    def split(self, rows: Tensor) -> dict[str, Tensor]:
        """Split rows ``(b, d)`` into views: name to ``(b, *shape)``."""
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
        knowledge: the attacker's knowledge, which describes the silo's training.
        parametrisation: maps unknowns to images.
        layout: the unknowns: the parametrisation's, ``labels`` ``(n, *outputs)`` as
            `Loss.relaxed` takes them if searched, ``SURROGATE`` if searched, and the secrets by
            name.
        state: each candidate's row in ``public`` and ``fixed``, ``(b,)``.
        public: parameters with gradients, name to ``(g, *shape)``.
        fixed: other shared state, name to ``(g, *shape)``.
        given: known private state, name to ``(b, *shape)``.
        labels: ``(b, n, ...)`` targets, or None if they are optimised.
        targets: name to ``(b, *shape)``.
        weights: weights of the targets ``(b, layers)``.
        cost: see ``cost.py``.
        prior: see ``prior.py``.
        update: index of each candidate's update ``(b,)``.
        rates: the silos' learning rates ``(b,)``.
        order: the images' places in local training ``(b, epochs, n)``, or None.
        statistics: known statistics of BatchNorm inputs: name to two ``(b, c)``.
        leader: the candidate whose secrets each one shares ``(b,)``, or None for its own.
        vmapped: whether all candidates run at once by vmap, or one by one, which is slower.

    """

    model: nn.Module
    knowledge: Knowledge
    layout: Layout
    state: Tensor
    public: dict[str, Tensor]
    fixed: dict[str, Tensor]
    targets: dict[str, Tensor]
    weights: Tensor
    cost: Cost
    update: Tensor
    rates: Tensor
    parametrisation: Parametrisation = field(default_factory=Pixels)
    given: dict[str, Tensor] = field(default_factory=dict)
    labels: Tensor | None = None
    prior: Prior = field(default_factory=Prior)
    order: Tensor | None = None
    statistics: Statistics = field(default_factory=dict)
    leader: Tensor | None = None
    vmapped: bool = True

    def select(self, rows: Tensor) -> Objective:
        """The objective of some candidates; a follower's leader must be among them."""

        def some(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[rows]

        leader = some(self.leader)
        if leader is not None:
            place = torch.full_like(self.state, -1)
            place[rows] = torch.arange(len(rows), device=rows.device)
            leader = place[leader]
        return replace(
            self,
            state=self.state[rows],
            given={name: value[rows] for name, value in self.given.items()},
            labels=some(self.labels),
            targets={name: value[rows] for name, value in self.targets.items()},
            weights=self.weights[rows],
            update=self.update[rows],
            rates=self.rates[rows],
            order=some(self.order),
            statistics={n: (m[rows], v[rows]) for n, (m, v) in self.statistics.items()},
            leader=leader,
        )

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Costs ``(b,)`` of candidates ``(b, d)``, and the gradient of cost plus prior."""
        rows = rows.detach().requires_grad_()
        # no torch.compile: measured on two cores it saves 2 to 5 % of a step on LeNet and
        # ResNet-20, and takes 5 to 26 s for every new number of candidates
        cost, objective = self._evaluate(rows)
        # the outer derivative runs outside vmap, on the batched tensors: a quarter to a third
        # faster than vmap over both derivatives, and rows are independent either way
        (gradient,) = torch.autograd.grad(objective.sum(), rows)
        return cost.detach(), gradient

    def value(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Costs ``(b,)`` of candidates ``(b, d)``, and costs plus priors ``(b,)``; no gradient."""
        with torch.no_grad():
            return self._evaluate(rows)

    def images(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``(b, n, *input_shape)`` and labels ``(b, n, ...)`` of candidates ``(b, d)``."""
        with torch.no_grad():
            images, labels, _ = self._decode(self.layout.split(rows))
        return images, labels if self.labels is not None else self.knowledge.loss.told(labels)

    def _decode(self, parts: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Images, labels ``(b, n, ...)`` or relaxed ``(b, n, *outputs)``, and secrets."""
        images, logits = self.parametrisation.decode(parts, self.knowledge)
        labels = self.labels
        if labels is None:
            labels = self.knowledge.loss.relaxed(parts["labels"] if logits is None else logits)
        secrets = self.knowledge.secrets
        names = secrets.names if secrets is not None and secrets.draw is not None else ()
        private = {name: parts[name] for name in names}
        if self.leader is not None:
            private = {name: value[self.leader] for name, value in private.items()}
        return images, labels, private

    def _evaluate(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        parts = self.layout.split(rows)
        images, labels, private = self._decode(parts)
        gradients, found = self.gradients(
            images, labels, {**private, **self.given}, parts.get(SURROGATE)
        )
        targets = list(self.targets.values())
        for transform in self.knowledge.transforms:
            gradients = transform.replay(gradients, targets)
        cost = self.cost(gradients, targets, self.weights)
        prior = self.prior(images, self.update, found, self.statistics)
        return cost, cost + prior + self.parametrisation.penalty(parts)

    def gradients(
        self,
        images: Tensor,
        labels: Tensor,
        private: dict[str, Tensor],
        place: Tensor | None = None,
    ) -> tuple[list[Tensor], Statistics]:
        """Each candidate's simulated update, ``(b, *shape)`` per target, and its statistics.

        With a place ``(b, 1)``, from 0 to 1, it is the gradient at this fraction of the way from
        the state before to the state after.
        """
        public, fixed, shared = self.public, self.fixed, None
        if len(next(iter(public.values()))) == 1:
            # one set of weights for all keeps the convolutions large
            public = {name: value[0] for name, value in public.items()}
            fixed = {name: value[0] for name, value in fixed.items()}
        else:
            shared = 0
            public = {name: value[self.state] for name, value in public.items()}
            fixed = {name: value[self.state] for name, value in fixed.items()}
        moving = shared
        if place is not None:
            moving, far = 0, self.rates * place[:, 0]
            public = {
                name: self.public[name][self.state] - far.view(-1, *[1] * (t.dim() - 1)) * t
                for name, t in self.targets.items()
            }
        ordered = None if self.order is None else 0
        every = vmap if self.vmapped else one_by_one
        gradients: dict[str, Tensor]
        gradients, found = every(self._send, in_dims=(moving, shared, 0, 0, 0, ordered, 0))(
            public, fixed, private, images, labels, self.order, self.rates
        )
        return [gradients[name] for name in self.targets], found

    def _send(
        self,
        public: dict[str, Tensor],
        fixed: dict[str, Tensor],
        private: dict[str, Tensor],
        images: Tensor,
        labels: Tensor,
        order: Tensor | None,
        learning_rate: Tensor,
    ) -> tuple[dict[str, Tensor], Statistics]:
        """One candidate's gradient, or the result of its local training, and statistics."""
        fixed = copied(fixed)  # layers such as spectral norm change their buffers

        def loss(
            weights: dict[str, Tensor], images: Tensor, labels: Tensor
        ) -> tuple[Tensor, Statistics]:
            with batch_statistics(self.model, self.statistics) as found:
                outputs = run(self.model, {**weights, **fixed, **private}, images)
            return self.knowledge.loss(outputs, labels), found

        gradient = grad(loss, has_aux=True) if self.vmapped else slope(loss)
        if order is None or self.knowledge.training is None:
            made, found = gradient(public, images, labels)
            return made, found
        trained = [
            replay(
                lambda weights, images, labels: gradient(weights, images, labels)[0],
                public,
                images,
                labels,
                training=self.knowledge.training,
                order=own,
                learning_rate=learning_rate,
            )
            for own in order.chunk(self.knowledge.silos, 1)
        ]
        return {name: torch.stack([one[name] for one in trained]).mean(0) for name in public}, {}
