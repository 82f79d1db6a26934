"""Updates of public images, simulated, and what a decoder sees of an update."""

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

_WIDEST = 4096  # entries of a layer that a decoder sees as they are
_EDGE = 5.0  # deviations from the simulations' mean: what is further is as good as there
_TOGETHER = 25  # locks that are tuned at once
_GUESSED, _NEAR = 2000, 25  # simulated updates, and how many of them decide on a label


class Simulation:
    """Updates of public images from one state, and what a decoder sees of an update."""

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
            layout=Layout({}),  # nothing is searched: only gradients are asked for
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
        data: PublicData = knowledge.public  # type: ignore[assignment]  # reconstruct has looked
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
        """Public images on [0, 1] that a decoder may be trained on, warped, and their labels."""
        rows = self.held + self._below(len(self.labels) - self.held, count)
        images = self.images[rows]
        if self.warp and images.dim() == 4:
            images = self._warped(images)
        return images, self.labels[rows]

    def held_out(self) -> tuple[Tensor, Tensor]:
        """The others, as they are: each so often that it is seen under more locks than one."""
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
        """What silos would send of these images, each under a lock that is taken at random.

        And at which learning rate, ``(b,)``.
        """
        low, high = self.knowledge.bounds
        count, training = len(images), self.knowledge.training
        rates = self.rates[self._below(len(self.rates), count)]
        private = {}
        if self.locks:
            lock = self._below(len(next(iter(self.locks.values()))), count)
            private = {name: value[lock] for name, value in self.locks.items()}
        # of one image there is one order
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
        """For each update the label that most of the simulated ones have that look most like it."""
        images, labels = self.draw(_GUESSED)
        near = torch.cdist(seen, self.seen(images, labels)).topk(_NEAR, largest=False).indices
        return labels[near].mode(1).values

    def _observed(self, before: dict[str, Tensor], after: dict[str, Tensor]) -> Tensor:
        """What an update transform leaves to be observed of states, the labels not among it."""
        assert self.knowledge.update_transform is not None
        left = self.knowledge.update_transform.observable(before, after)
        # they span orders of magnitude
        size = left.abs().clamp(min=torch.finfo(left.dtype).tiny).log()
        return self._standardised(torch.cat([left, left.sign(), size], 1).to(self.images))

    def _states(
        self, sent: dict[str, Tensor], rates: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the server had sent, and what came back."""
        before = {n: self.objective.public[n].expand_as(value) for n, value in sent.items()}
        return before, {n: before[n] - _wide(rates, value) * value for n, value in sent.items()}

    def _standardised(self, seen: Tensor) -> Tensor:
        # with less than a clamp, one odd layer of a silo's own update would outweigh all others
        return ((seen - self.centre) / self.spread).clamp(-_EDGE, _EDGE)

    def _narrowed(self, name: str, entries: Tensor) -> Tensor:
        """A layer of more entries than a decoder can take, as random signed sums of them.

        They keep distances, about (count sketch: Charikar et al., ICALP 2002).
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
        """``count`` random integers below a limit; all of them once, in random order, for None."""
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
        """Name to ``(locks, *shape)``; nothing where nothing is private."""
        secrets = self.knowledge.secrets
        if secrets is None:
            return {}
        assert secrets.draw is not None  # or Knowledge would not have this level
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
        """Locks that fit the public weights, as a silo's do that was trained with them."""
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
    """Weight to bias of the linear layers that see one vector of one image: once, one row."""
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
    """The two vectors whose outer product a gradient ``(b, out, in)`` is: of output and input.

    Zeros where a silo's gradient was too small for what it sent.
    """
    if bias is None:  # then the input is known but for its size and sign
        rows = torch.arange(len(weight), device=weight.device)
        found = _unit(weight[rows, weight.square().sum(2).argmax(1)])
        # what comes of an activation is mostly above 0
        found = torch.where(found.sum(1, keepdim=True) < 0, -found, found)
        return [(weight @ found[..., None])[..., 0], found]
    found = weight.new_zeros(len(weight), weight.shape[2])
    some = bias.any(1)
    if some.any():
        found[some] = linear_input(weight[some], bias[some])
    return [bias, found]


def _unit(rows: Tensor) -> Tensor:
    """Each row at norm 1, or 0 if it is 0."""
    tiny = torch.finfo(rows.dtype).tiny
    # scaled first, or the squares of small entries would be rounded to 0
    rows = rows / rows.abs().amax(1, keepdim=True).clamp(min=tiny)
    made: Tensor = rows / rows.norm(dim=1, keepdim=True).clamp(min=tiny)
    return made


def _rounded(sent: Tensor, before: Tensor, rates: Tensor) -> Tensor:
    """``(b, *shape)`` as the difference of two states of limited precision gives it."""
    rates = _wide(rates, sent)
    return (before - (before - rates * sent)) / rates


def _wide(rates: Tensor, like: Tensor) -> Tensor:
    """``(b,)`` as ``(b, 1, ...)``, to be multiplied with what is like this."""
    return rates.view(-1, *[1] * (like.dim() - 1))
