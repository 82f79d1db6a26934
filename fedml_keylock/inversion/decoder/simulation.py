"""Simulates updates of public images, and computes what a decoder sees of an update."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from ...errors import AttackError
from ...tensors import under
from ..analytic import linear_input
from ..cost import COSTS
from ..engine.evaluate import one_by_one, run
from ..engine.layer_inputs import watch
from ..engine.objective import Layout, Objective
from ..engine.observe import Observation
from ..engine.probe import probe
from ..knowledge import Knowledge, PublicData
from .learning import LearningSettings

__all__ = ["Simulation"]

_WIDEST = 4096  # entries of the widest layer that a decoder sees unchanged
_EDGE = 5.0  # deviations from the simulations' mean at which features are clamped
_TOGETHER = 25  # locks that are tuned together
_GUESSED, _NEAR = 2000, 25  # simulated updates, and how many neighbours vote on a label


class Simulation:
    """Updates of public images, simulated from one state, and what a decoder sees of an update."""

    def __init__(
        self,
        attack: LearningSettings,
        observation: Observation,
        index: int,
        rates: Tensor,
        knowledge: Knowledge,
        generator: torch.Generator,
    ) -> None:
        public = {name: value[index : index + 1] for name, value in observation.public.items()}
        like = next(iter(public.values()))
        self.knowledge, self.generator, self.warp = knowledge, generator, attack.warp
        self.batch_size = attack.batch_size
        self.rates, self.moved = rates, observation.moved[observation.state == index].any(0)
        self.objective = Objective(
            model=observation.model,
            knowledge=knowledge,
            layout=Layout({}),  # nothing is searched: only gradients are needed
            state=torch.zeros(1, dtype=torch.long, device=like.device),
            public=public,
            fixed={name: value[index : index + 1] for name, value in observation.fixed.items()},
            targets=observation.targets,
            weights=observation.moved,
            cost=COSTS["cosine"],
            update=torch.zeros(1, dtype=torch.long, device=like.device),
            rates=rates,
        )
        self.objective, _ = probe(self.objective, twice=False)
        data: PublicData = knowledge.public  # type: ignore[assignment]  # reconstruct checked it
        low, high = knowledge.bounds
        order = self._below(len(data.images), None)
        self.images = ((data.images.to(like) - low) / (high - low)).clamp(0, 1)[order]
        self.labels = data.labels.to(like.device)[order]
        if not self.images.isfinite().all():
            raise AttackError("the public images have NaN or infinite values")
        self.held = max(1, round(attack.held_out * len(order)))
        self.mean = self.images[self.held :].mean(0)
        self.locks = self._draw(attack)
        self.outer = _outer_products(self.objective)
        self.sketch: dict[str, tuple[Tensor, Tensor]] = {}
        self.centre, self.spread = like.new_zeros(()), like.new_ones(())
        first = self.seen(*self.draw(256))
        self.centre, self.spread = first.mean(0), first.std(0).clamp(min=1e-6)
        self.width = first.shape[1]

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Public images on [0, 1] for training, warped, and their labels."""
        rows = self.held + self._below(len(self.labels) - self.held, count)
        images = self.images[rows]
        if self.warp and images.dim() == 4:
            images = self._warped(images)
        return images, self.labels[rows]

    def held_out(self) -> tuple[Tensor, Tensor]:
        """The held-out images, not warped; each is repeated, to be seen under several locks."""
        rows = torch.arange(max(self.held, 128), device=self.labels.device) % self.held
        return self.images[rows], self.labels[rows]

    def seen(self, images: Tensor, labels: Tensor) -> Tensor:
        """What a decoder sees of simulated updates of these images: ``(b, features)``."""
        rows = torch.arange(len(labels), device=labels.device)
        seen = []
        for part in torch.split(rows, self.batch_size):
            sent, rates = self._updates(images[part], labels[part])
            if self.knowledge.update_transform is None:
                seen.append(self.features(sent, labels[part], rates))
                continue
            before, after = self._states(sent, rates)
            after = self.knowledge.update_transform.simulate(before, after, self.generator)
            seen.append(self._observed(before, after))
        return torch.cat(seen)

    @torch.no_grad()
    def _updates(self, images: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What silos would send for these images, each under a random lock.

        Also the learning rates, ``(b,)``.
        """
        low, high = self.knowledge.bounds
        count, training = len(images), self.knowledge.training
        rates = self.rates[self._below(len(self.rates), count)]
        private = {}
        if self.locks:
            lock = self._below(len(next(iter(self.locks.values()))), count)
            private = {name: value[lock] for name, value in self.locks.items()}
        # one image has only one order
        order = None if training is None else labels.new_zeros(count, training.epochs, 1)
        state = torch.zeros_like(labels)
        objective = replace(self.objective, state=state, rates=rates, order=order)
        inputs = low + (high - low) * images[:, None]
        made, _ = objective.gradients(inputs, labels[:, None], private)
        sent = dict(zip(objective.targets, made, strict=True))
        for transform in self.knowledge.transforms:
            each = [
                transform.apply({n: v[i] for n, v in sent.items()}, self.generator)
                for i in range(count)
            ]
            sent = {name: torch.stack([one[name] for one in each]) for name in sent}
        public = objective.public
        return {n: _rounded(value, public[n], rates) for n, value in sent.items()}, rates

    def features(self, sent: dict[str, Tensor], labels: Tensor, rates: Tensor) -> Tensor:
        """What a decoder sees of b updates: ``(b, features)``, standardised by simulations."""
        if self.knowledge.update_transform is not None:
            return self._observed(*self._states(sent, rates))
        parts = [F.one_hot(labels, self.knowledge.classes).to(self.images)]
        done: set[str] = set()
        for weight, bias in self.outer.items():
            parts += _factors(sent[weight], None if bias is None else sent[bias])
            done |= {weight, bias or weight}
        for name, moved in zip(sent, self.moved, strict=True):
            if moved and name not in done:
                parts.append(self._narrowed(name, sent[name].flatten(1)))
        return self._standardised(torch.cat([_unit(part) for part in parts], 1))

    def likeliest(self, seen: Tensor) -> Tensor:
        """The most common label of each update's nearest simulated updates."""
        images, labels = self.draw(_GUESSED)
        near = torch.cdist(seen, self.seen(images, labels)).topk(_NEAR, largest=False).indices
        return labels[near].mode(1).values

    def _observed(self, before: dict[str, Tensor], after: dict[str, Tensor]) -> Tensor:
        """What an update transform leaves observable of states, without the labels."""
        assert self.knowledge.update_transform is not None
        left = self.knowledge.update_transform.observable(before, after)
        # features span orders of magnitude
        size = left.abs().clamp(min=torch.finfo(left.dtype).tiny).log()
        return self._standardised(torch.cat([left, left.sign(), size], 1).to(self.images))

    def _states(
        self, sent: dict[str, Tensor], rates: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The states that the server sent, and those that silos sent back."""
        before = {n: self.objective.public[n].expand_as(value) for n, value in sent.items()}
        return before, {n: before[n] - _wide(rates, value) * value for n, value in sent.items()}

    def _standardised(self, seen: Tensor) -> Tensor:
        # without a clamp, one odd layer of a silo's update would outweigh all others
        return ((seen - self.centre) / self.spread).clamp(-_EDGE, _EDGE)

    def _narrowed(self, name: str, entries: Tensor) -> Tensor:
        """Random signed sums of a layer's entries, if it has more than a decoder can take.

        They roughly preserve distances (count sketch: Charikar et al., ICALP 2002).
        """
        size = entries.shape[1]
        if size <= _WIDEST:
            return entries
        if name not in self.sketch:
            sign = (2 * self._below(2, size) - 1).to(entries)
            self.sketch[name] = self._below(_WIDEST, size), sign
        place, sign = self.sketch[name]
        return entries.new_zeros(len(entries), _WIDEST).index_add(1, place, entries * sign)

    def _below(self, limit: int, count: int | None) -> Tensor:
        """``count`` random integers below a limit; for None all of them once, in random order."""
        g = self.generator
        if count is None:
            made = torch.randperm(limit, generator=g, device=g.device)
        else:
            made = torch.randint(limit, (count,), generator=g, device=g.device)
        return made.to(self.rates.device)

    def _warped(self, images: Tensor) -> Tensor:
        g, shape = self.generator, (len(images), 2, 3)
        noise = 2 * torch.rand(shape, generator=g, device=g.device).to(images) - 1
        maps = torch.eye(2, 3).to(images) + self.warp * noise
        places = F.affine_grid(maps, list(images.shape), align_corners=False)
        return F.grid_sample(images, places, padding_mode="border", align_corners=False)

    def _draw(self, attack: LearningSettings) -> dict[str, Tensor]:
        """Name to ``(locks, *shape)``; empty if nothing is private."""
        secrets = self.knowledge.secrets
        if secrets is None:
            return {}
        assert secrets.draw is not None  # Knowledge requires it at this level
        drawn = secrets.draw(attack.locks, self.generator)
        parameters = dict(self.objective.model.named_parameters())
        for name in secrets.names:
            shape = (attack.locks, *parameters[name].shape)
            if name not in drawn or drawn[name].shape != shape:
                raise AttackError(f"Secrets.draw gives no {name} of shape {shape}")
        locks = {name: drawn[name].detach().to(self.images) for name in secrets.names}
        tuned = round(attack.tuned * attack.locks)
        for first in range(0, tuned, _TOGETHER):
            part = slice(first, min(first + _TOGETHER, tuned))
            some = {name: value[part] for name, value in locks.items()}
            for name, value in self._tuned(some, attack.tuning).items():
                locks[name][part] = value
        return locks

    def _tuned(self, locks: dict[str, Tensor], steps: int) -> dict[str, Tensor]:
        """Locks that fit the public weights, as if trained with them."""
        model, (low, high) = self.objective.model, self.knowledge.bounds
        shared = {**self.objective.public, **self.objective.fixed}
        shared = {name: value[0] for name, value in shared.items()}

        def loss(private: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
            return self.knowledge.loss(run(model, {**shared, **private}, images), labels)

        every = vmap if self.objective.vmapped else one_by_one
        locks = {name: value.clone().requires_grad_() for name, value in locks.items()}
        optimizer = torch.optim.Adam(list(locks.values()), 0.01)
        count = len(next(iter(locks.values())))
        for _ in range(steps):
            rows = self.held + self._below(len(self.labels) - self.held, 16 * count).view(count, 16)
            images = low + (high - low) * self.images[rows]
            losses = every(loss, in_dims=(0, 0, 0))(locks, images, self.labels[rows])
            optimizer.zero_grad()
            losses.sum().backward()
            optimizer.step()
        return {name: value.detach() for name, value in locks.items()}


def _outer_products(objective: Objective) -> dict[str, str | None]:
    """Weight to bias of linear layers that see one vector once, from one image or row."""
    knowledge = objective.knowledge
    if knowledge.training is not None:  # several local steps add up several products
        return {}
    linear = {n: m for n, m in objective.model.named_modules() if isinstance(m, nn.Linear)}
    like = next(iter(objective.public.values()))
    calls, _ = watch(objective.model, linear, like.new_zeros(1, *knowledge.input_shape))
    found: dict[str, str | None] = {}
    for name, layer in linear.items():
        sizes = [got.numel() for called, _, got in calls if called == name and got is not None]
        weight, bias = under(name, "weight"), under(name, "bias")
        if sizes == [layer.in_features] and weight in objective.targets:
            found[weight] = bias if bias in objective.targets else None
    return found


def _factors(weight: Tensor, bias: Tensor | None) -> list[Tensor]:
    """The output's and the input's factor of an outer product ``(b, out, in)``.

    Zeros where a silo's gradient was too small for the precision of what it sent.
    """
    if bias is None:  # then the input is known up to its size and sign
        rows = torch.arange(len(weight), device=weight.device)
        found = _unit(weight[rows, weight.square().sum(2).argmax(1)])
        # outputs of an activation are mostly positive
        found = torch.where(found.sum(1, keepdim=True) < 0, -found, found)
        return [(weight @ found[..., None])[..., 0], found]
    found = weight.new_zeros(len(weight), weight.shape[2])
    some = bias.any(1)
    if some.any():
        found[some] = linear_input(weight[some], bias[some])
    return [bias, found]


def _unit(rows: Tensor) -> Tensor:
    """Scale each row to norm 1; a row of 0 stays 0."""
    tiny = torch.finfo(rows.dtype).tiny
    # scaled first, because squares of small entries could underflow
    rows = rows / rows.abs().amax(1, keepdim=True).clamp(min=tiny)
    made: Tensor = rows / rows.norm(dim=1, keepdim=True).clamp(min=tiny)
    return made


def _rounded(sent: Tensor, before: Tensor, rates: Tensor) -> Tensor:
    """Round gradients ``(b, *shape)`` as the difference of two states of limited precision does."""
    rates = _wide(rates, sent)
    return (before - (before - rates * sent)) / rates


def _wide(rates: Tensor, like: Tensor) -> Tensor:
    """Reshape ``(b,)`` to ``(b, 1, ...)``, to multiply with a tensor like this."""
    return rates.view(-1, *[1] * (like.dim() - 1))
