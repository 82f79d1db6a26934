"""The inconsistent-models attack: isolates one silo's update in a sum by silencing the others."""

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
"""Mean of the victim's last bias, a mark for its state that a softmax ignores."""


@checked
class InconsistentModelsAttack:
    """Recovers one silo's update, the victim's, although the server sees only a sum.

    The victim gets the job's weights. All others get weights under which no ReLU unit is ever
    active, so that they return a gradient of the last bias only. The sum's other entries are the
    victim's alone, and a passive attack reads them. Labels read from the last bias are those of all
    silos.

    Silos that compare the models they were sent, as under `lock: sealed`, detect it.

    Attributes:
        name: the attack's name in reports.
        victim: index of the victim.
        reads: the passive attack on the victim's update.

    Example:
        >>> InconsistentModelsAttack().reads.name
        'analytic'

    """

    name: str = "inconsistent_models"
    victim: Natural = 0
    reads: Attack = field(default_factory=AnalyticAttack)

    @property
    def needs(self) -> frozenset[str]:
        """The needs of the passive attack; also, the server must send the weights of `arm`."""
        return self.reads.needs

    @property
    def uses(self) -> frozenset[str]:
        """What the passive attack can use."""
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
        """Make the victim's state, and that of all others; see `ActiveAttack.arm`."""
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
        """Raise AttackError if more of the silenced model than its last bias has a gradient."""
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
        """Attack the victim's update, alone or in a sum, by `reads`.

        ``Knowledge.batch`` counts the victim's images only. All of a sum but the gradient of the
        last bias is the victim's: see `share_of_victim`. An update from the silenced weights gives
        no result, with an infinite cost.

        AttackError if no update started from the victim's weights.
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
        """Share of an update's squared norm that is certainly the victim's, from 0 to 1.

        All but the last bias, to which every silo adds.
        """
        shape = dict(model.named_parameters())
        moved = {n: float(update.pseudo_gradient(n).double().square().sum()) for n in shape}
        last = [*shape][-1]
        return 1 - moved[last] / sum(moved.values())


def _is_marked(update: ClientUpdate, head: str) -> bool:
    return abs(float(update.before[head].double().mean()) - _MARK) < 1e-6
