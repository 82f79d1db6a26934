"""Reconstructs images by a decoder that was trained on simulated updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import nn

from ...errors import AttackError
from ...settings import checked
from ...types import ClientUpdate, Reconstruction
from ..base import check_level
from ..engine.observe import observe
from ..knowledge import Knowledge
from ..labels import find_labels
from .learning import LearningSettings
from .network import train_decoder
from .simulation import Simulation

__all__ = ["LearnedAttack"]

_FEWEST = 20  # public images: with fewer there is nothing to hold out


@checked
class LearnedAttack(LearningSettings):
    """A decoder from updates to images, trained on as many simulated updates as needed.

    Wu et al., "Learning to invert", 2022 (arXiv 2210.10880); the simulated locks are ours. The
    attacker has public images of the same kind. In every step some of them get a lock each, drawn
    like a new silo's. The attacker computes the updates that silos would have sent, rounded as
    silos round them, and trains the decoder to return the images. The silos' own updates are
    decoded at the end, all at once.

    The decoder sees the label and every layer's gradient, at norm 1, so that the model's confidence
    does not matter. For a linear layer with one input vector, the gradient is an outer product: the
    decoder sees that vector and the gradient of the layer's output (as ``analytic.linear_input``).

    A lock that was trained with the model differs from a new one: the public weights fit it. So a
    share of the simulated locks is tuned on the public images first, with the public weights held
    fixed.

    Example:
        >>> sorted(LearnedAttack(steps=500).needs)
        ['public data']

    """

    needs: ClassVar[frozenset[str]] = frozenset({"public data"})
    """Data to train a decoder on."""
    uses: ClassVar[frozenset[str]] = frozenset({"kind", "public data"})
    """Also the kind of the lock, to simulate it."""

    def reconstruct(
        self,
        updates: Sequence[ClientUpdate],
        model: nn.Module,
        *,
        knowledge: Knowledge,
        generator: torch.Generator,
        progress: Callable[[int, int], None] | None = None,
    ) -> Reconstruction:
        """Train a decoder for each state that the server had sent, and apply it.

        The cost is not the update's own. It is the decoder's error on simulated updates of held-out
        public images, the same for all updates from one state; the history is that error during
        training. The decoder with the lowest error is kept. Nothing can diverge.

        It takes updates of one image each, at level ``simulating``.

        Raises:
            AttackError: the level, the batch or the public data do not suit it; or updates, model
                and knowledge do not fit together, before any work is done; or a decoder's error
                became NaN or infinite.

        """
        check_level(self, knowledge.level)
        if knowledge.batch > 1:
            raise AttackError(
                f"{self.name} needs a batch of 1, not {knowledge.batch}: its decoder gives one "
                "image an update; use an attack that searches"
            )
        assert knowledge.public is not None  # Knowledge requires it at this level
        if len(knowledge.public.images) < _FEWEST:
            raise AttackError(
                f"{self.name} needs at least {_FEWEST} public images, not "
                f"{len(knowledge.public.images)}"
            )
        observation = observe(updates, model, knowledge)
        like = next(iter(observation.public.values()))
        labels = find_labels(observation.model, observation.targets, knowledge).to(like.device)
        images = like.new_empty(len(updates), *knowledge.input_shape)
        states = len(like)
        costs, history = like.new_empty(states), []
        for index in range(states):
            rows = (observation.state == index).nonzero().flatten().to(like.device)
            rates = torch.tensor([updates[row].learning_rate for row in rows.tolist()]).to(like)
            simulation = Simulation(self, observation, index, rates, knowledge, generator)

            def report(step: int, before: int = index * self.steps) -> None:
                if progress is not None:
                    progress(before + step, states * self.steps)

            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
            with torch.random.fork_rng():
                torch.manual_seed(seed)  # for the decoder's initial weights
                decoder, errors = train_decoder(self, simulation, report)
            sent = {name: value[rows] for name, value in observation.targets.items()}
            with torch.no_grad():
                seen = simulation.features(sent, labels[rows, 0], rates)
                images[rows] = decoder(seen)
                # the head's gradient of a protected state tells nothing
                if knowledge.update_transform is not None and knowledge.labels is None:
                    labels[rows, 0] = simulation.likeliest(seen)
            history.append(errors)
            costs[index] = errors.min()
        low, high = knowledge.bounds
        state = observation.state.to(like.device)
        return Reconstruction(
            images=(low + (high - low) * images)[:, None].clamp(low, high),
            labels=labels,
            cost=costs[state],
            history=torch.stack(history, 1)[:, state],
            diverged=torch.zeros_like(state),
            attack=self.name,
            knowledge=knowledge.level,
        )
