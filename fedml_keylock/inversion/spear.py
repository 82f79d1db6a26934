"""Recovers whole batches exactly from the gradient of a linear layer with a ReLU behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import nn

from ..settings import Count, checked
from ..tensors import under
from ..types import ClientUpdate, Reconstruction
from .base import SEARCH, check_level, check_one_step
from .disaggregate import check_batch, disaggregate
from .engine.layer_inputs import first_linear
from .engine.observe import observe
from .engine.relu_behind import check_relu
from .knowledge import Knowledge
from .labels import labels_if_any

__all__ = ["SpearAttack"]


@checked
class SpearAttack:
    """The inputs of a model that starts with a linear layer and a ReLU: a whole batch, exactly.

    The gradient of the layer's weight has the rank of the batch. Behind a ReLU each input adds
    nothing to about half of the rows, which distinguishes its part from mixtures (`disaggregate`).
    The work grows exponentially with the batch: with each input by a factor of one over the share
    of inactive rows, which training lowers.

    In single precision it is as exact as the update. If the model hardly moved, the update was
    rounded, and beyond some rounding the search finds nothing.

    Attributes:
        name: name of the attack in reports.
        samples: the most submatrices to try for each update.
        chunk: how many of them at once; the source has 10,000.

    Example:
        >>> SpearAttack(samples=20_000).chunk
        10000

    """

    name: str = "spear"
    samples: Count = 1_000_000
    chunk: Count = 10_000

    needs: ClassVar[frozenset[str]] = frozenset()
    """Nothing: it decomposes the sent gradients."""
    uses: ClassVar[frozenset[str]] = frozenset()
    """Nothing: it searches nothing that a lock hides."""

    def reconstruct(
        self,
        updates: Sequence[ClientUpdate],
        model: nn.Module,
        *,
        knowledge: Knowledge,
        generator: torch.Generator,
        progress: Callable[[int, int], None] | None = None,
    ) -> Reconstruction:
        """Find the inputs of the first layer, in any order.

        The cost is one minus the source's sparsity matching coefficient: the share of the layer's
        outputs whose sign, computed from the found inputs, differs from the gradient's. It is 0 up
        to rounding. An update counts as diverged, with an infinite cost, if the gradient's rank
        exceeds the batch, or if no set of directions was certain. That is a failed search, not a
        defense.

        Equal inputs add up to one; remaining places repeat inputs that were found. The labels are
        sorted, not matched to the images.

        It takes updates of one plain SGD step, at level ``oblivious``, and raises an AttackError
        for others.
        """
        check_level(self, knowledge.level)
        check_one_step(self.name, knowledge, instead=SEARCH)
        observation = observe(updates, model, knowledge)
        name = first_linear(observation.model, knowledge)
        check_relu(
            self.name,
            observation.model,
            name,
            shape=knowledge.input_shape,
            bounds=knowledge.bounds,
        )
        weight, bias = under(name, "weight"), under(name, "bias")
        count, like = len(updates), observation.targets[weight]
        check_batch(self.name, knowledge.batch, like)
        labels = labels_if_any(observation.model, observation.targets, knowledge)
        images = like.new_full((count, knowledge.batch, like.shape[2]), sum(knowledge.bounds) / 2)
        cost = torch.full((count,), float("inf"))
        for index in range(count):
            state = observation.state[index]
            made = disaggregate(
                observation.targets[weight][index],
                observation.targets[bias][index],
                observation.public[weight][state],
                observation.public[bias][state],
                most=knowledge.batch,
                samples=self.samples,
                chunk=self.chunk,
                generator=generator,
            )
            if made is not None:
                found, cost[index] = made
                images[index] = found[torch.arange(knowledge.batch) % len(found)].to(like)
            if progress is not None:
                progress(index + 1, count)
        return Reconstruction(
            images=images.view(count, -1, *knowledge.input_shape).clamp(*knowledge.bounds),
            labels=labels.to(like.device),
            cost=cost.to(like),
            history=cost[None].to(like),
            diverged=cost.isinf().long().to(like.device),
            attack=self.name,
            knowledge=knowledge.level,
        )
