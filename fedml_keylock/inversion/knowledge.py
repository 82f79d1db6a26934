"""What an attacker knows besides the update and the public model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..errors import AttackError, ConfigError
from ..settings import Count, NotNegative, Share, checked
from ..types import UpdateTransform
from .gradient_transform import Transform
from .levels import GRANTS, check_known_levels
from .loss import CROSS_ENTROPY, Loss

__all__ = ["Knowledge", "LocalTraining", "PublicData", "Secrets", "Statistics"]

Statistics = dict[str, tuple[Tensor, Tensor]]
"""Name of a BatchNorm module to the mean and the variance of its input's channels."""


@checked
class Secrets:
    """Parameters of the attacker's model that the update does not hold: a lock's private state.

    Attributes:
        names: their names in the attacker's ``model.named_parameters()``.
        draw: for every level that optimises them: ``draw(count, generator)`` returns name to
            starts, each ``(count, *shape)``, one a candidate, drawn as a new silo's are.
        given: for ``oracle``: name to values, each ``(u, *shape)``, one an update. Held fixed.
        peers: for ``insider``: name to the private state of p colluding silos, each
            ``(p, *shape)``: an update's first p restarts start there, the others a quarter of the
            way from there to a draw.

    With nothing but names, the values in the attacker's model stand and are held fixed: an
    ``oblivious`` attacker who only knows that the lock exists.

    Raises:
        ConfigError: no names, a name twice, both ``draw`` and ``given``, or names that ``given`` or
            ``peers`` do not hold.

    Example:
        >>> Secrets(("lock.gamma",), draw=lambda count, g: {
        ...     "lock.gamma": 0.3 + 1.4 * torch.rand(count, 12, generator=g)}).names
        ('lock.gamma',)

    """

    names: tuple[str, ...]
    draw: Callable[[int, torch.Generator], dict[str, Tensor]] | None = None
    given: Mapping[str, Tensor] | None = field(default=None, repr=False)
    peers: Mapping[str, Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) != len(self.names):
            raise ConfigError("Secrets.names must name at least one parameter, each once")
        if self.draw is not None and self.given is not None:
            raise ConfigError("Secrets takes draw (adaptive) or given (oracle), not both")
        for what in ("given", "peers"):
            held = getattr(self, what)
            if held is not None and set(held) != set(self.names):
                odd = ", ".join(sorted(set(held) ^ set(self.names)))
                raise ConfigError(f"Secrets.{what} and Secrets.names differ in: {odd}")


@checked
class PublicData:
    """Data of the same kind as the silos', which anybody may have.

    Attributes:
        images: ``(m, *input_shape)``, within the bounds.
        labels: ``(m, ...)``: integers ``(m,)``, or whatever the job's loss takes for targets.

    Raises:
        ConfigError: shapes or types do not fit one another.

    Example:
        >>> PublicData(torch.zeros(5, 1, 8, 8), torch.arange(5)).labels.shape
        torch.Size([5])

    """

    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.images) == 0 or self.labels.shape[:1] != self.images.shape[:1]:
            raise ConfigError(
                f"public data are images and a label for each, not {tuple(self.images.shape)} and "
                f"{tuple(self.labels.shape)}"
            )
        if not self.images.is_floating_point():
            raise ConfigError("public data are floating-point images")


@checked
class LocalTraining:
    """How a silo trained between what it got and what it sent: SGD on the job's loss.

    The learning rate is the update's own. What is private is held fixed meanwhile.

    Attributes:
        batch_size: images a step; the last of an epoch may have fewer.
        epochs: how often the silo went through its images.
        momentum: of ``torch.optim.SGD``, from a buffer that is empty at the round's start.
        nesterov: likewise.
        weight_decay: likewise.
        order: ``fixed``: the same batches in every epoch, as FedML's own loaders have them.
            ``searched``: shuffled, and not known: every restart draws an order of its own, so that
            the lowest cost chooses among them. Or ``(u, epochs, n)`` integers, the known places of
            the images, by epoch.

    Example:
        >>> LocalTraining(batch_size=4, epochs=2).steps(10)
        6

    """

    batch_size: Count
    epochs: Count = 1
    momentum: Share = 0.0
    nesterov: bool = False
    weight_decay: NotNegative = 0.0
    order: Literal["fixed", "searched"] | Tensor = "fixed"

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise ConfigError("nesterov needs a momentum above 0")

    def steps(self, images: int) -> int:
        """Steps of a round on that many images."""
        return self.epochs * -(-images // self.batch_size)


@checked
class Knowledge:
    """The attacker, declared. An attack uses nothing beyond this, the update and the model.

    Attributes:
        level: one of ``LEVELS``. ``oblivious`` ignores the defense. ``adaptive`` knows its kind and
            optimises what is private together with the image; ``statistics`` does so and sees the
            statistics of normalisation layers; ``insider`` does so from the private state of a
            colluding silo; ``temporal`` does so for all updates of a silo under one private state.
            ``simulating`` trains on public data and simulated locks. ``oracle`` is given what is
            private.
        input_shape: of one image, ``(c, h, w)``, or of one row of a table, ``(features,)``.
        classes: how many classes the model tells apart; or, of a loss without classes, how many
            outputs it has.
        batch: images in each update, n.
        labels: ``(u, n)`` integer labels, or ``(u, n, ...)`` of what else the loss takes for
            targets, if they are known; otherwise the attack finds them.
        loss: what the silo minimised.
        output_shape: what the model gives for one image; None: ``(classes,)``.
        bounds: least and greatest pixel value, in the units that the model is fed.
        secrets: what the update does not hold; None if the attacker's model has nothing private.
        statistics: for ``statistics``, and for ``oracle`` if it wants them: name of a BatchNorm
            module of the attacker's model to mean and variance of its input, each ``(u, c)``, one
            an update: the running statistics, where they are public.
        public: for ``simulating``.
        training: how the silo trained; None for one plain SGD step on all n images.
        silos: of how many silos an update is the average, each trained on as many of the images, in
            their order. Without ``training`` it is one step on all of them, whoever has them.
        norms: the silo's normalisation layers were in ``train`` mode, by batch statistics, or in
            ``eval`` mode, by the running statistics that the server had sent.
        transforms: what the silo did to its gradient before it sent it, in this order.
        update_transform: for ``simulating``, of a defense that changes what is sent and not what is
            computed: what it leaves to be seen. None where states are seen as they are.

    Raises:
        AttackError: the level does not fit the secrets, the statistics or the data.

    Example:
        >>> Knowledge("oblivious", input_shape=(1, 28, 28), classes=10).batch
        1

    """

    level: str
    input_shape: tuple[Count, ...]
    classes: Annotated[int, Field(ge=1)]
    batch: Count = 1
    labels: Tensor | None = field(default=None, repr=False)
    bounds: tuple[float, float] = (0.0, 1.0)
    secrets: Secrets | None = None
    statistics: Mapping[str, tuple[Tensor, Tensor]] | None = field(default=None, repr=False)
    public: PublicData | None = field(default=None, repr=False)
    training: LocalTraining | None = None
    silos: Count = 1
    norms: Literal["train", "eval"] = "train"
    transforms: tuple[Transform, ...] = ()
    update_transform: UpdateTransform | None = None
    loss: Loss = CROSS_ENTROPY
    output_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_known_levels([self.level])
        if self.loss.targets == "classes" and self.classes < 2:
            raise ConfigError(f"{self.loss.name} tells 2 classes or more apart, not {self.classes}")
        if len(self.input_shape) not in (1, 3):
            raise ConfigError(
                f"input_shape must be (c, h, w) or (features,), not {tuple(self.input_shape)}"
            )
        if self.batch % self.silos:
            raise ConfigError(f"{self.batch} images are not as many of each of {self.silos} silos")
        if not self.bounds[0] < self.bounds[1]:
            raise ConfigError(f"bounds must be (low, high) with low < high, not {self.bounds}")
        self._check_labels()
        self._check_secrets()
        self._check_statistics()
        self._check_public()

    @property
    def outputs(self) -> tuple[int, ...]:
        """What the model gives for one image."""
        return self.output_shape or (self.classes,)

    def _check_labels(self) -> None:
        labels = self.labels
        if labels is None:
            return
        if labels.ndim >= 2 and labels.shape[1] == self.batch:
            self.loss.fitted(labels.flatten(0, 1), self.outputs)  # or it says that they do not fit
        if self.loss.targets != "classes" or labels.ndim > 2:
            return
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise AttackError(f"labels must be integers, not {labels.dtype}")
        if labels.ndim != 2 or labels.shape[1] != self.batch:
            raise AttackError(
                f"labels must be (updates, {self.batch}), not {tuple(labels.shape)}: one label for "
                "each image of each update"
            )
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise AttackError(
                f"labels must lie in 0 to {self.classes - 1}, these span "
                f"{int(labels.min())} to {int(labels.max())}"
            )

    def _check_secrets(self) -> None:
        secrets = self.secrets
        if secrets is None:
            if self.level == "insider":
                raise AttackError("an insider has a peer's private state: Knowledge needs secrets")
            return
        grants = GRANTS[self.level]
        if "kind" in grants and secrets.draw is None:
            raise AttackError(
                f"an attacker who is {self.level!r} optimises the secrets: Secrets needs draw"
            )
        if self.level == "oracle" and secrets.given is None:
            raise AttackError("an oracle attacker is told the secrets: Secrets needs given")
        if self.level == "oblivious" and (secrets.draw or secrets.given) is not None:
            raise AttackError(
                "an oblivious attacker knows no secrets: leave out Secrets.draw and Secrets.given"
            )
        if ("peer" in grants) != (secrets.peers is not None):
            raise AttackError("Secrets.peers is for level 'insider', which needs it")

    def _check_statistics(self) -> None:
        if self.level == "statistics" and not self.statistics:
            raise AttackError(
                "an attacker who is 'statistics' sees those of normalisation layers: "
                "Knowledge needs statistics"
            )
        if self.statistics is not None and self.level not in ("statistics", "oracle"):
            raise AttackError(
                f"an {self.level} attacker sees no statistics: the level for it is 'statistics'"
            )
        if self.statistics is not None and self.training is not None:
            raise AttackError("statistics are of one batch: they do not go with Knowledge.training")

    def _check_public(self) -> None:
        if (self.level == "simulating") != (self.public is not None):
            raise AttackError("Knowledge.public is for level 'simulating', which needs it")
        if self.public is None:
            return
        shape = tuple(self.public.images.shape[1:])
        if shape != tuple(self.input_shape):
            raise AttackError(f"public images are {shape}, the silos' {tuple(self.input_shape)}")
        labels = self.public.labels
        if labels.is_floating_point() or labels.ndim > 1:
            raise AttackError("an attacker who simulates needs public images of one class each")
        if not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise AttackError(f"public labels must lie in 0 to {self.classes - 1}")
