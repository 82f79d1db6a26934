"""The objective of many candidates at once, and its gradient."""

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
"""Name of the place between the states before and after, where it is searched."""

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
        knowledge: the attacker's; the objective is what it says that the silo did.
        parametrisation: how unknowns become images.
        layout: what is optimised: the parametrisation's unknowns, perhaps ``labels``
            ``(n, *outputs)`` as `Loss.relaxed` takes them, perhaps ``SURROGATE``, and the secrets
            by name.
        state: ``(b,)`` row of each candidate in ``public`` and ``fixed``.
        public: what gradients are taken for, name to ``(g, *shape)``.
        fixed: other shared state, name to ``(g, *shape)``.
        given: private state that is known, name to ``(b, *shape)``.
        labels: ``(b, n, ...)`` targets, or None if they are optimised.
        targets: name to ``(b, *shape)``.
        weights: ``(b, layers)`` weights of the targets.
        cost: see ``cost.py``.
        prior: see ``prior.py``.
        update: ``(b,)`` the update that each candidate explains.
        rates: ``(b,)`` the silo's learning rate.
        order: ``(b, epochs, n)`` places of the images in local training, or None.
        statistics: of BatchNorm inputs, as far as they are known: name to two ``(b, c)``.
        leader: ``(b,)`` the candidate whose secrets this one has too, or None: its own.
        vmapped: all candidates run at once; or, slower, one by one, where vmap cannot.

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
        """The same for some of the candidates; with whoever follows goes his leader."""

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
        """``(b, d)`` candidates -> ``(b,)`` costs and the ``(b, d)`` gradient of cost and prior."""
        rows = rows.detach().requires_grad_()
        # not through torch.compile: measured on two cores it saves 2 to 5 in a hundred of a step on
        # LeNet and ResNet-20, and takes 5 to 26 s for every new number of candidates
        cost, objective = self._evaluate(rows)
        # the outer derivative runs outside of vmap, on the batched tensors themselves: a quarter to
        # a third faster than vmap over both derivatives, and the rows are independent either way
        (gradient,) = torch.autograd.grad(objective.sum(), rows)
        return cost.detach(), gradient

    def value(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """``(b, d)`` candidates -> ``(b,)`` costs, and ``(b,)`` of cost and prior, both alone."""
        with torch.no_grad():
            return self._evaluate(rows)

    def images(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """``(b, d)`` candidates -> ``(b, n, *input_shape)`` images, ``(b, n, ...)`` labels."""
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
        """What each candidate would have sent, ``(b, *shape)`` a target; and its statistics.

        With a place ``(b, 1)``, from 0 to 1, that is the gradient at this share of the way from the
        state before to that after.
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
        """One candidate's gradient and statistics; or what its local training comes to."""
        fixed = copied(fixed)  # a layer may change its buffers, as spectral norm does

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
