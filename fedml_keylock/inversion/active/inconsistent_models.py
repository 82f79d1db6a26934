"""One silo's update out of a sum: the others get a model that teaches them nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import field, replace

import torch
from torch import Tensor, nn

from ...errors import AttackError, reason_of
from ...settings import Natural, checked
from ...tensors import copy_of, under
from ...types import ClientUpdate, Reconstruction
from ..analytic import AnalyticAttack
from ..base import Attack, check_level
from ..engine.layer_inputs import watch
from ..engine.observe import observe
from ..knowledge import Knowledge, PublicData
from ..outputs import logits_of
from .arming import State, floats, loaded, not_armed

__all__ = ["InconsistentModelsAttack"]

_MARK = 7 / 64
"""The mean of the victim's last bias, which a softmax does not see: so it is known again."""


@checked
class InconsistentModelsAttack:
    """The update of one silo, its victim, where the server gets no more than a sum.

    The victim is sent the job's own weights, and every other silo ones under which no unit of a
    ReLU is ever active: nothing comes back from it but a gradient of the last bias. What is read of
    the sum by an attack that changes nothing is then the victim's. In a sum the labels, as far as
    they are read off the last bias, are those of all silos.

    Silos that compare the models that they were sent, as under `lock: sealed`, see it.

    Attributes:
        name: what a report calls it.
        victim: index of the silo.
        reads: the attack on its update.

    Example:
        >>> InconsistentModelsAttack().reads.name
        'analytic'

    """

    name: str = "inconsistent_models"
    victim: Natural = 0
    reads: Attack = field(default_factory=AnalyticAttack)

    @property
    def needs(self) -> frozenset[str]:
        """What the attack on the victim's update needs; and a server that sends its own weights."""
        return self.reads.needs

    @property
    def uses(self) -> frozenset[str]:
        """What that attack can use."""
        return self.reads.uses

    def arm(
        self,
        model: nn.Module,
        *,
        silos: int,
        input_shape: tuple[int, ...],
        bounds: tuple[float, float],
        public: PublicData | None,
        generator: torch.Generator,
    ) -> dict[int | None, State]:
        """The victim's state, and that of all others; see `ActiveAttack.arm`."""
        if not self.victim < silos > 1:
            raise AttackError(
                f"{self.name} needs another silo beside its victim, silo {self.victim}, among the "
                f"{silos} that take part"
            )
        low, high = bounds
        images = low + (high - low) * torch.rand(4, *input_shape, generator=generator)
        head = self._head(model, images)
        state, dead = floats(model), floats(model)
        state[head] += _MARK - state[head].mean()
        for name, module in model.named_modules():
            for part, parameter in module.named_parameters(recurse=False):
                if under(name, part).rpartition(".")[0] != head.rpartition(".")[0]:
                    dead[under(name, part)] = torch.full_like(parameter, -1.0 * (part == "bias"))
        self._check_dead(loaded(model, dead), images, head)
        return {None: dead, self.victim: state}

    def _head(self, model: nn.Module, images: Tensor) -> str:
        """Name of the last layer's bias."""
        copied = copy_of(model).eval()
        own = {n: m for n, m in copied.named_modules() if [*m.parameters(recurse=False)]}
        calls, error = watch(copied, own, images[:1].to(next(copied.parameters())))
        if error is not None:
            shape = tuple(images.shape[1:])
            raise AttackError(f"{self.name}: the model takes no {shape} image: {reason_of(error)}")
        if not calls or not isinstance(calls[-1][1], nn.Linear) or calls[-1][1].bias is None:
            raise AttackError(f"{self.name} needs a model that ends in a linear layer with a bias")
        return under(calls[-1][0], "bias")

    def _check_dead(self, model: nn.Module, images: Tensor, head: str) -> None:
        """Refuse a model of which more than its last bias still has a gradient."""
        named = {n: p for n, p in model.train().named_parameters() if n != head}
        scores = logits_of(model(images.to(next(model.parameters()))))
        cost = nn.functional.cross_entropy(scores, torch.zeros(len(scores)).to(scores).long())
        made = torch.autograd.grad(cost, list(named.values()), allow_unused=True)
        alive = [n for n, one in zip(named, made, strict=True) if one is not None and one.any()]
        if alive:
            raise AttackError(
                f"{self.name} needs units that can be switched off, as ReLUs are, before the last "
                f"layer; {alive[-1]} has a gradient still"
            )

    def reconstruct(
        self,
        updates: Sequence[ClientUpdate],
        model: nn.Module,
        *,
        knowledge: Knowledge,
        generator: torch.Generator,
        progress: Callable[[int, int], None] | None = None,
    ) -> Reconstruction:
        """Read the victim's update, or a sum's, by the attack that `reads`.

        ``Knowledge.batch`` counts the victim's images alone. All of a sum but the gradient of the
        last bias is the victim's: see `share_of_victim`. An update that began from the others'
        weights says nothing: it is no result, with an infinite cost.

        An AttackError refuses updates none of which began from the weights of the victim.
        """
        check_level(self, knowledge.level)
        observe(updates, model, knowledge)
        head = self._head(model, torch.full((1, *knowledge.input_shape), sum(knowledge.bounds) / 2))
        own = [place for place, one in enumerate(updates) if _is_marked(one, head)]
        if not own:
            raise not_armed(self.name)
        made = self.reads.reconstruct(
            [updates[place] for place in own],
            loaded(model, updates[own[0]].before),
            knowledge=replace(
                knowledge, labels=None if knowledge.labels is None else knowledge.labels[own]
            ),
            generator=generator,
            progress=progress,
        )
        count, like = len(updates), made.images
        images = like.new_full((count, *like.shape[1:]), sum(knowledge.bounds) / 2)
        labels = made.labels.new_full((count, *made.labels.shape[1:]), -1)
        cost = made.cost.new_full((count,), float("inf"))
        history = made.history.new_full((len(made.history), count), float("inf"))
        diverged = made.diverged.new_ones(count)
        images[own], labels[own], cost[own] = made.images, made.labels, made.cost
        history[:, own], diverged[own] = made.history, made.diverged
        return Reconstruction(
            images, labels, cost, history, diverged, attack=self.name, knowledge=made.knowledge
        )

    def share_of_victim(self, update: ClientUpdate, model: nn.Module) -> float:
        """How much of an update's squared length is the victim's for certain, from 0 to 1.

        It is all of it but that of the last bias, to which every silo adds.
        """
        shape = dict(model.named_parameters())
        moved = {n: float(update.pseudo_gradient(n).double().square().sum()) for n in shape}
        last = [*shape][-1]
        return 1 - moved[last] / sum(moved.values())


def _is_marked(update: ClientUpdate, head: str) -> bool:
    return abs(float(update.before[head].double().mean()) - _MARK) < 1e-6
