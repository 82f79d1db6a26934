"""Runs the attacks that a job's YAML sets, on the updates that its server received."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from typing import Any

import click
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..defense import Defense
from ..errors import AttackError, ConfigError, reason_of
from ..evaluation.audit.training import output_shape
from ..evaluation.capture import Capture
from ..evaluation.section import InversionSettings
from ..evaluation.trials import attack_updates, knowledge_of, save_reconstruction, trials
from ..inversion import CROSS_ENTROPY, Attack, Loss, PublicData
from ..plugins import attack_of, manager, metrics
from ..types import Agreement, ClientUpdate
from .job_configuration import Arguments
from .job_loss import loss_of_job

__all__ = ["Attacker", "ServerCapture", "images_of"]

_PUBLIC = 1000
"""Number of the server's test images that a simulating attacker gets."""
_SEEN = 100
"""Number of test images that give the range of pixels."""


@dataclass
class Attacker:
    """The attacks of a job's `gradient_inversion` section.

    Attributes:
        settings: the section's settings.
        rounds: indices of the rounds to attack.
        attacks: the configured attacks by name.
        trials: the attacks with the levels of knowledge at which they run.
        public: the server's own test data, or None if they are not images.
        loss: the loss that the silos minimise.
        bounds: least and greatest pixel value, from the settings or the test data.

    """

    settings: InversionSettings
    rounds: frozenset[int]
    attacks: Mapping[str, Attack]
    trials: list[tuple[str, str]]
    public: PublicData | None = None
    loss: Loss = CROSS_ENTROPY
    bounds: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def begin(cls, settings: InversionSettings, *, rounds: int, defended: bool) -> Attacker:
        """Make the attacks of a job of `total` rounds.

        Raises:
            ConfigError: an attack, round or metric is unknown, or an attack's field is wrong.
            AttackError: an attack can run at none of the levels.

        """
        # refuse impossible attacks before the training, not after it
        _check_limits(settings)
        indices = settings.rounds_of(rounds)
        made = {n: attack_of(n, fields) for n, fields in settings.attacks.items()}
        return cls(settings, indices, made, trials(made, settings.knowledge, defended=defended))

    def see_trainer(self, args: Arguments, trainer: Any) -> None:
        """Find the job's loss by `loss_of_job`; print a notice if it is assumed."""
        self.loss = loss_of_job(self.settings.loss, args, trainer)
        if self.loss.assumed and (not int(args.rank or 0) or self.settings.side == "silo"):
            said = "gradient_inversion.loss: not named, and not found in the trainer: "
            click.echo(f"fedml-keylock: {said}{self.loss.name} is assumed", err=True)

    def see_data(self, loader: Iterable[Any]) -> None:
        """Keep what attacks need of the server's test data; most need only shape and range."""
        simulating = any(level == "simulating" for _, level in self.trials)
        self.public = images_of(loader, _PUBLIC if simulating else _SEEN)
        if self.settings.bounds is not None:
            self.bounds = self.settings.bounds
        elif self.public is not None:
            low, high = self.public.images.min().item(), self.public.images.max().item()
            if low < 0 or high > 1:  # the job's loader may normalise them
                self.bounds = low, high

    def public_for(self, outputs: tuple[int, ...]) -> PublicData | None:
        """The public data, with labels for the loss and a model of this output shape."""
        if self.public is None:
            return None
        images, labels = self.public.images, self.public.labels
        return PublicData(images, self.loss.seen(labels).fitted(labels, outputs))


@dataclass
class ServerCapture:
    """Captures the updates that a server receives, and attacks them.

    Attributes:
        attacker: the section's attacks.
        capture: the capture on disk.
        model: the job's model before it was protected.
        defense: the job's defense, or None.
        each: number of updates in a round.
        seed: the attacks' seed.

    """

    attacker: Attacker
    capture: Capture
    model: nn.Module = field(repr=False)
    defense: Defense | None
    each: int
    seed: int
    _count: int = 0

    @classmethod
    def begin(
        cls,
        attacker: Attacker,
        args: Arguments,
        model: nn.Module,
        defense: Defense | None,
        *,
        name: str | None,
        agreement: Agreement | None,
    ) -> ServerCapture:
        """Begin the capture, with the defense's name and agreement in its notes.

        Raises:
            AttackError: the folder holds a capture already, or cannot be written.

        """
        meta = {
            "learning_rate": float(args.learning_rate),
            "client_optimizer": str(getattr(args, "client_optimizer", "")),
            "batch_size": int(getattr(args, "batch_size", 0)),
            "epochs": int(getattr(args, "epochs", 1) or 1),
            "rounds": int(args.comm_round),
            "bounds": list(attacker.bounds),
            "loss": attacker.loss.name,
            "loss_assumed": attacker.loss.assumed,
            "defense": name,
            "settings": dict(agreement.settings) if agreement else {},
            "layers": list(agreement.layers) if agreement else [],
        }
        capture = Capture.create(attacker.settings.output / "capture", meta)
        each, seed = int(args.client_num_per_round), int(getattr(args, "random_seed", 0))
        return cls(attacker, capture, model, defense, each, seed)

    def add(self, update: ClientUpdate, *, own: bool = False) -> None:
        """Keep an update of a captured round; with `when: inline` attack a complete round.

        Args:
            update: the update, with the state sent.
            own: the silo was sent a model of its own.

        Raises:
            AttackError: the update cannot be written, or the attack fails.

        """
        self.capture.add(update, own=own)
        self._count += 1
        if self.attacker.settings.when == "inline" and self._count % self.each == 0:
            self._attack(update.round)  # while FedML waits to aggregate

    def finish(self, received: Mapping[str, Tensor] | None) -> None:
        """Called at the job's end with the model that the server sent last: attack all updates."""
        if received is not None:
            self.capture.finish(received)
        if self.attacker.settings.when == "after":
            self._attack()

    def _attack(self, only: int | None = None) -> None:
        """Reconstruct images from the captured updates, and report where they are.

        Reports go to stderr, since FedML hides loggers' lines. An attack that fails is reported,
        and does not stop the others.

        Args:
            only: attack only this round, into a folder of its own; None for all rounds.

        Raises:
            AttackError: the job's data are not images, or the capture is damaged.

        """
        attacker, output = self.attacker, self.attacker.settings.output
        if attacker.public is None:
            raise AttackError("the job's test data gives no (c, h, w) images to reconstruct")
        outputs = output_shape(self.model, attacker.public.images)
        public = attacker.public_for(outputs)
        assert public is not None
        chosen = [e for e in self.capture.entries() if only in (None, e[0])]
        updates = [self.capture.load(*entry) for entry in chosen[: attacker.settings.images]]
        if only is not None:
            output = output / f"round-{only:05d}"
        attacker_model = self.defense.attacker_model(self.model) if self.defense else None
        settings = attacker.settings
        batch = settings.batch or (settings.active and self.capture.meta["batch_size"]) or 1
        for name, level in attacker.trials:
            try:
                knowledge = knowledge_of(
                    level,
                    input_shape=tuple(public.images.shape[1:]),
                    classes=outputs[0],
                    output_shape=outputs,
                    loss=attacker.loss.seen(public.labels),
                    attacker_model=attacker_model,
                    public=public,
                    bounds=attacker.bounds,
                    batch=batch,
                )
                with tqdm(desc=f"{name}, {level}", unit="step", leave=False) as bar:
                    made = attack_updates(
                        attacker.attacks[name],
                        updates,
                        self.model,
                        knowledge=knowledge,
                        attacker_model=attacker_model,
                        seed=self.seed,
                        progress=partial(_advance, bar),
                    )
            except Exception as error:  # no error of an attack ends the job
                refused = error if isinstance(error, AttackError) else AttackError(reason_of(error))
                click.echo(f"fedml-keylock: {name}, {level}: not run: {refused}", err=True)
                manager().hook.on_attack_error(attack=name, error=refused)
                continue
            path = save_reconstruction(output, made, updates)
            costs = ", ".join(
                f"{cost:.3g}" if isfinite(cost) else "no result" for cost in made.cost.tolist()
            )
            click.echo(
                f"fedml-keylock: {name}, {level}: cost reached {costs}; pictures in {path}",
                err=True,
            )


def images_of(loader: Iterable[Any], wanted: int) -> PublicData | None:
    """The first images of a loader, at least as many as wanted, or None if there are none.

    Batches are kept whole. A loader that shuffles by torch's generator uses a copy of it, so that
    an attack does not change the silo's training.

    Example:
        >>> images_of([(torch.rand(2, 1, 8, 8), torch.zeros(2))], 1).images.shape
        torch.Size([2, 1, 8, 8])

    """
    images: list[Tensor] = []
    labels: list[Tensor] = []
    with torch.random.fork_rng(devices=[]):
        for batch in loader:
            if not isinstance(batch, (list, tuple)) or len(batch) < 2:
                return None
            some, which = batch[0], batch[1]
            if not (isinstance(some, Tensor) and some.dim() == 4 and some.is_floating_point()):
                return None
            if not isinstance(which, Tensor) or which.shape[:1] != some.shape[:1]:
                return None
            first = (images or [some])[0], (labels or [which])[0]
            if (some.shape[1:], which.shape[1:]) != tuple(one.shape[1:] for one in first):
                return None
            images.append(some)
            labels.append(which)
            if sum(map(len, images)) >= wanted:
                break
    if not images:
        return None
    return PublicData(torch.cat(images)[:_PUBLIC], torch.cat(labels)[:_PUBLIC])


def _advance(bar: tqdm[Any], done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def _check_limits(settings: InversionSettings) -> None:
    """Check that each limit is on a known metric, of which more means more leakage.

    Raises:
        ConfigError: a limit is not; names the metrics that may have one.

    """
    if not settings.abort_above:
        return
    # for distances, such as LPIPS, small values mean leakage
    known = [n for n in ("label_accuracy", *metrics()) if not n.startswith("lpips")]
    odd = [name for name in settings.abort_above if name not in known]
    if odd:
        raise ConfigError(
            f"{settings.section}.abort_above: {odd[0]!r} is no metric to be above; there are: "
            f"{', '.join(known)}"
        )
