"""Images read off updates by a decoder that was trained on simulated ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ...errors import AttackError, ConfigError
from ...types import ClientUpdate, Reconstruction
from ..engine.observe import Observation, observe
from ..knowledge import Knowledge
from ..labels import head_gradients, label_of_one
from ..levels import check_level
from .network import DecoderFactory, train_decoder
from .simulation import Simulation

__all__ = ["LearnedAttack"]

_FEWEST = 20  # public images: below that there is nothing to hold out


@dataclass(frozen=True)
class LearnedAttack:
    """A decoder from updates to images, trained on as many simulated updates as it takes.

    Wu et al., "Learning to invert", 2022 (arXiv 2210.10880); the simulated locks are ours. The
    attacker has public images of the same kind. At every step he takes some, each under a lock
    drawn as a new silo's is, computes what a silo would have sent of it, rounded as a silo rounds
    it, and trains the decoder to give the image back. The silos' own updates come last, all at
    once.

    The decoder sees the label; every layer's gradient, at norm 1, so that it does not matter how
    sure of itself a model is; and of a linear layer that saw one vector, whose gradient is an outer
    product, that vector and the gradient of its output (as ``analytic.linear_input``).

    A lock that was trained with the model is not like a new one: the public weights fit it. So a
    share of the simulated locks are tuned on the public images first, the public weights held
    fixed.

    Attributes:
        name: what a report calls it.
        steps: of the decoder's training, by Adam with decoupled weight decay.
        batch_size: simulated updates a step.
        learning_rate: the greatest: it rises over a tenth of the steps, then falls to 0.
        locks: drawn at once, and combined with the images anew at every step.
        tuned: share of the locks that are tuned; 1 suits trained weights, 0 those of a first round.
        tuning: steps of Adam by which they are tuned.
        warp: public images are turned, scaled, sheared and moved by up to this share of half their
            size before they are simulated; 0 takes them as they are, as rows of a table are taken.
        held_out: share of the public images that the decoder is not trained on.
        decoder: makes the decoder; None for ``ConvDecoder``.

    Raises:
        ConfigError: a field has a value that is not allowed.

    Example:
        >>> sorted(LearnedAttack(steps=500).needs)
        ['public data']

    """

    name: str = "learned"
    steps: int = 2500
    batch_size: int = 64
    learning_rate: float = 1e-3
    locks: int = 200
    tuned: float = 0.5
    tuning: int = 150
    warp: float = 0.1
    held_out: float = 0.1
    decoder: DecoderFactory | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "locks", "tuning"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.tuned <= 1:
            raise ConfigError(f"tuned must be 0 to 1, not {self.tuned}")
        if not 0 < self.learning_rate < float("inf"):
            raise ConfigError(f"learning_rate must be above 0, not {self.learning_rate}")
        if not 0 <= self.warp < 1:
            raise ConfigError(f"warp must be at least 0 and below 1, not {self.warp}")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out must be above 0 and below 1, not {self.held_out}")

    @property
    def needs(self) -> frozenset[str]:
        """Data to train a decoder on."""
        return frozenset({"public data"})

    @property
    def uses(self) -> frozenset[str]:
        """The kind of the lock too, to simulate it."""
        return frozenset({"kind", "public data"})

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

        The cost is not the update's own: it is the decoder's error on simulated updates of public
        images that were held out, the same for all updates from one state; the history is that
        error over training. The decoder is kept as it was where it was least. Nothing can diverge.

        Args:
            updates: u updates, each of one image.
            model: as far as the attacker knows it. Its own public values do not matter.
            knowledge: what else the attacker knows; level ``simulating``, a batch of one.
            generator: source of the locks, of what is simulated, and of the decoder's start; the
                same state gives the same result.
            progress: called with steps done and steps in all, of all decoders.

        Raises:
            AttackError: the level, the batch or the public data is not of that kind; or updates,
                model and knowledge do not fit together, before any work is done. Or a decoder's
                error became NaN or infinite.

        """
        check_level(self, knowledge.level)
        if knowledge.batch > 1:
            raise AttackError(
                f"{self.name} needs a batch of 1, not {knowledge.batch}: its decoder gives one "
                "image an update; use an attack that searches"
            )
        assert knowledge.public is not None  # or Knowledge would not have this level
        if len(knowledge.public.images) < _FEWEST:
            raise AttackError(
                f"{self.name} needs at least {_FEWEST} public images, not "
                f"{len(knowledge.public.images)}"
            )
        observation = observe(updates, model, knowledge)
        like = next(iter(observation.public.values()))
        labels = self._labels(observation, knowledge).to(like.device)
        images = like.new_empty(len(updates), *knowledge.input_shape)
        states = len(like)
        costs, history = like.new_empty(states), []
        for index in range(states):
            rows = (observation.state == index).nonzero().flatten().to(like.device)
            rates = torch.tensor([updates[row].learning_rate for row in rows.tolist()]).to(like)
            simulation = Simulation(self, observation, index, rates, knowledge, generator)
            report = partial(_report, progress, index * self.steps, states * self.steps)
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
            with torch.random.fork_rng():
                torch.manual_seed(seed)  # of the decoder's start, which torch draws without asking
                decoder, errors = train_decoder(self, simulation, report)
            sent = {name: value[rows] for name, value in observation.targets.items()}
            with torch.no_grad():
                images[rows] = decoder(simulation.features(sent, labels[rows, 0]))
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

    def _labels(self, observation: Observation, knowledge: Knowledge) -> Tensor:
        if knowledge.labels is not None:
            return knowledge.labels
        weight, bias = head_gradients(observation.model, observation.targets, knowledge.classes)
        return label_of_one(weight, bias)[:, None]


def _report(
    progress: Callable[[int, int], None] | None, before: int, total: int, step: int
) -> None:
    if progress is not None:
        progress(before + step, total)
