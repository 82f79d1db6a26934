"""The subject of an audit: updates, the truth behind them, and public knowledge of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...errors import AttackError
from ...inversion import CROSS_ENTROPY, LocalTraining, Loss, PublicData
from ...types import AttackerModel, ClientUpdate, UpdateTransform
from ..contrast import of_one_colour
from ..leakage import WINDOW

__all__ = ["Fresh", "Protection", "Rebuild", "Subject", "check_labels"]

Fresh = Callable[[nn.Module, torch.Generator], tuple[nn.Module, Mapping[str, Tensor]]]
"""Makes a protected copy of a model with a new silo's private state, and returns that state's
values under the attacker's model's names."""

Rebuild = Callable[[], tuple[nn.Module, AttackerModel | None]]
"""Makes the public model and the attacker's model anew, with any weights."""


@dataclass(frozen=True)
class Protection:
    """A defense as an audit needs it.

    Attributes:
        name: "keylock:paper:all".
        attacker_model: the public model as an attacker who knows the defense builds it.
        fresh: applies the defense to a copy of a model; without it the attacker's model is used,
            which computes the same.

    """

    name: str
    attacker_model: AttackerModel
    fresh: Fresh | None = None


@dataclass(frozen=True)
class Subject:
    """Updates and the truth behind them. The truth serves for scores only, never for an attack.

    Attributes:
        updates: the u updates.
        images: the truth ``(u, n, c, h, w)`` within the bounds.
        labels: ``(u, n)`` integers, or ``(u, n, ...)`` of other targets of the loss.
        model: the public model, unprotected.
        classes: its number of classes or outputs.
        defense: "none", or its name and settings, "keylock:paper:all".
        attacker_model: the defended model as an attacker knows it; None without a defense.
        secrets: values of the attacker's model's secret variables at each update,
            ``(u, *shape)``, or what its update_transform needs. For the oracle only; None if
            nobody has them.
        public: public data of the same kind.
        stages: for each update, "untrained" or "trained": the weights at its round's start.
        training: how the silos trained; None for one plain step on all n images.
        plain: the undefended model's state, if the state sent is another.
        bounds: least and greatest pixel value of the model's inputs; public.
        rebuild: makes the model and the attacker's model in another process, for MPI ranks,
            to which neither can be sent. It must pickle by name, as a ``functools.partial``.
        loss: the loss that the silos minimised.
        output_shape: shape of the model's output for one image; empty for ``(classes,)``.

    Raises:
        AttackError: the parts do not fit together.

    """

    updates: tuple[ClientUpdate, ...] = field(repr=False)
    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    model: nn.Module = field(repr=False)
    classes: int
    defense: str = "none"
    attacker_model: AttackerModel | None = field(default=None, repr=False)
    secrets: Mapping[str, Tensor] | None = field(default=None, repr=False)
    public: PublicData | None = field(default=None, repr=False)
    stages: tuple[str, ...] = ()
    training: LocalTraining | None = None
    plain: Mapping[str, Tensor] | None = field(default=None, repr=False)
    bounds: tuple[float, float] = (0.0, 1.0)
    rebuild: Rebuild | None = None
    loss: Loss = CROSS_ENTROPY
    output_shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.updates)
        if not count:
            raise AttackError("there is no update to audit")
        if self.images.ndim != 5 or self.labels.shape[:2] != self.images.shape[:2]:
            raise AttackError(
                f"the truth is {tuple(self.images.shape)} with labels {tuple(self.labels.shape)}, "
                "not (updates, n, c, h, w) and (updates, n, ...)"
            )
        height, width = self.images.shape[-2:]
        if min(height, width) < WINDOW:
            raise AttackError(
                f"pictures of {height} x {width} are too small to score: SSIM needs {WINDOW} x "
                f"{WINDOW} or more"
            )
        if len(self.images) != count or len(self.stages) not in (0, count):
            raise AttackError(f"{count} updates, and the truth of {len(self.images)}")
        if self.has_classes:
            check_labels(self.labels, self.classes)
            if self.public is not None:
                check_labels(self.public.labels, self.classes, whose="public labels")
        if bool(of_one_colour(self.scaled(self.images)).all()):
            raise AttackError(
                "every picture is of one colour, of which any reconstruction is right once its "
                "brightness is aligned"
            )
        low, high = float(self.images.min()), float(self.images.max())
        if not self.bounds[0] <= low <= high <= self.bounds[1]:
            raise AttackError(
                f"pixels span {low:.2f} to {high:.2f}, and the bounds are {self.bounds[0]:.2f} to "
                f"{self.bounds[1]:.2f}: name the least and the greatest that the model is fed "
                "(gradient_inversion: {bounds: [low, high]})"
            )
        if (self.attacker_model is None) != (self.defense == "none"):
            raise AttackError(
                f"defense {self.defense!r} and its attacker's model do not go together"
            )
        if not self.stages:
            found = tuple("trained" if update.round else "untrained" for update in self.updates)
            object.__setattr__(self, "stages", found)

    @property
    def update_transform(self) -> UpdateTransform | None:
        """The transform of a defense that changes the update and not the model, else None."""
        return None if self.attacker_model is None else self.attacker_model.update_transform

    @property
    def has_classes(self) -> bool:
        """Whether each image has a single class."""
        return self.labels.ndim == 2 and not self.labels.is_floating_point()

    @property
    def batch(self) -> int:
        """Images in each update."""
        return self.images.shape[1]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one image, ``(c, h, w)``."""
        return tuple(self.images.shape[2:])

    def scaled(self, images: Tensor) -> Tensor:
        """Scale images from the bounds to [0, 1], the range of metrics and pictures."""
        low, high = self.bounds
        return (images - low) / (high - low)


def check_labels(labels: Tensor, classes: int, *, whose: str = "labels") -> None:
    """Raise AttackError for labels that are not among the model's classes."""
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= classes:
        raise AttackError(
            f"{whose} span {least} to {most}, and the model has classes 0 to {classes - 1}"
        )
