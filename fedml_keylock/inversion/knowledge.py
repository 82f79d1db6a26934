"""Declares what an attacker knows besides the update and the public model."""

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
"""Name of a BatchNorm module to mean and variance of its input's channels."""


@checked
class Secrets:
    """The attacker's model's secret variables: a lock's private state, which no update holds.

    Attributes:
        names: their names in the attacker's ``model.named_parameters()``.
        draw: for levels that optimise them: ``draw(count, generator)`` returns name to starts
            ``(count, *shape)``, one per candidate, drawn as for a new silo.
        given: for ``oracle``: name to fixed values ``(u, *shape)``, one per update.
        peers: for ``insider``: name to the private state of p colluding silos, ``(p, *shape)``. An
            update's first p restarts start there, the others a quarter of the way to a draw.

    With names only, the values in the attacker's model are used and stay fixed: an ``oblivious``
    attacker, who only knows that the lock exists.

    Raises:
        ConfigError: there are no names, a name is there twice, both ``draw`` and ``given`` are
            set, or ``given`` or ``peers`` lack a name.

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
    """Public data of the same kind as the silos' data.

    Attributes:
        images: ``(m, *input_shape)``, within the bounds.
        labels: integers ``(m,)``, or other targets of the job's loss ``(m, ...)``.

    Raises:
        ConfigError: shapes or types do not fit together.

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
    """A silo's training in a round: SGD on the job's loss.

    The learning rate is the update's. Private state stays fixed.

    Attributes:
        batch_size: images in a step; the last step of an epoch may have fewer.
        epochs: number of passes over the images.
        momentum: as of ``torch.optim.SGD``, with a buffer that is empty at the round's start.
        nesterov: as of ``torch.optim.SGD``.
        weight_decay: as of ``torch.optim.SGD``.
        order: ``fixed`` for the same batches in every epoch, as by FedML's loaders. ``searched``
            for an unknown shuffle: every restart draws an order, and the lowest cost decides. Or
            the images' known places in each epoch, ``(u, epochs, n)`` integers.

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
        """Number of steps of a round on this many images."""
        return self.epochs * -(-images // self.batch_size)


@checked
class Knowledge:
    """The attacker's knowledge: an attack uses only this, the update and the model.

    Attributes:
        level: one of ``LEVELS``. ``oblivious`` is unaware of the defense. ``adaptive`` knows the
            kind of lock, and optimises private state together with the image. ``statistics`` also
            sees the statistics of normalisation layers, ``insider`` starts from the private state
            of a colluding silo, and ``temporal`` pools all updates of a silo under one private
            state. ``simulating`` trains on public data and simulated locks. ``oracle`` is given
            the private state.
        input_shape: shape of an image, ``(c, h, w)``, or of a row of a table, ``(features,)``.
        classes: the model's number of classes; for a loss without classes, of outputs.
        batch: number n of images behind each update.
        labels: known integer labels ``(u, n)``, or other targets of the loss ``(u, n, ...)``; if
            None, the attack finds them.
        loss: the loss that the silo minimised.
        output_shape: shape of the model's output for one image; None for ``(classes,)``.
        bounds: least and greatest pixel value of the model's inputs.
        secrets: the secret variables; None if the attacker's model has none.
        statistics: for ``statistics``, and optionally ``oracle``: name of a BatchNorm module of
            the attacker's model to mean and variance of its input, each ``(u, c)``, as public
            running statistics give them.
        public: public data, for ``simulating``.
        training: how the silo trained; None for one plain SGD step on all n images.
        silos: number of silos in the average that an update is. Each trained on equally many of
            the images, in their order. Without ``training`` it is one step on all images.
        norms: ``train`` if the silo's normalisation layers used batch statistics, ``eval`` if
            they used the running statistics that the server had sent.
        transforms: the silo's changes to its gradient before it sent it, in order.
        update_transform: for ``simulating``: the transform of a defense that changes the update
            and not the model. None if states are visible as they are.

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
        """Shape of the model's output for one image."""
        return self.output_shape or (self.classes,)

    def _check_labels(self) -> None:
        labels = self.labels
        if labels is None:
            return
        if labels.ndim >= 2 and labels.shape[1] == self.batch:
            self.loss.fitted(labels.flatten(0, 1), self.outputs)  # raises if they do not fit
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
