"""What is audited: updates, what they were made of, and what anybody knows about the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ...errors import AttackError
from ...inversion import LocalTraining, PublicData
from ...types import ClientUpdate, Surrogate, UpdateTransform
from ..capture import Capture
from .training import count_classes, train_update
from .truth import Truth

__all__ = ["Fresh", "Protection", "Rebuild", "Subject", "from_capture", "probe"]

Fresh = Callable[[nn.Module, torch.Generator], tuple[nn.Module, Mapping[str, Tensor]]]
"""A protected copy of a model, with a new silo's private state, and the values of the surrogate's
unknowns in it."""

Rebuild = Callable[[], tuple[nn.Module, Surrogate | None]]
"""Makes the public model and the surrogate once more, of any weights."""


@dataclass(frozen=True)
class Protection:
    """A defense as an audit needs it.

    Attributes:
        name: "keylock:paper:all".
        surrogate: the public model as an attacker who knows the defense has it.
        fresh: puts the defense itself on a copy of a model; without it the surrogate stands in,
            which computes the same.

    """

    name: str
    surrogate: Surrogate
    fresh: Fresh | None = None


@dataclass(frozen=True)
class Subject:
    """Updates and the truth behind them. Only scores are made with the truth, never a picture.

    Attributes:
        updates: u of them.
        images: ``(u, n, c, h, w)`` within the bounds.
        labels: ``(u, n)`` integers.
        model: the public one, unprotected.
        classes: how many it tells apart.
        defense: "none", or its name and settings, "keylock:paper:all".
        surrogate: the defended model as an attacker knows it; None without a defense.
        secrets: the surrogate's unknowns as they were when each update was made, ``(u, *shape)``,
            or what its update_transform recovers updates by: for the oracle only. None where nobody
            has them.
        public: data of the same kind that anybody has.
        stages: of each update, "untrained" or "trained": the weights that its round began with.
        training: how the silos trained; None for one plain step on all n images.
        plain: the state of the undefended model, where what was sent is not that.
        bounds: least and greatest pixel value, as the model is fed them. Anybody knows them.
        rebuild: makes model and surrogate in another process, which a surrogate cannot be sent to:
            needed only by MPI's ranks. It is pickled by its name, such as a ``functools.partial``.

    Raises:
        AttackError: the parts do not fit together.

    """

    updates: tuple[ClientUpdate, ...] = field(repr=False)
    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    model: nn.Module = field(repr=False)
    classes: int
    defense: str = "none"
    surrogate: Surrogate | None = field(default=None, repr=False)
    secrets: Mapping[str, Tensor] | None = field(default=None, repr=False)
    public: PublicData | None = field(default=None, repr=False)
    stages: tuple[str, ...] = ()
    training: LocalTraining | None = None
    plain: Mapping[str, Tensor] | None = field(default=None, repr=False)
    bounds: tuple[float, float] = (0.0, 1.0)
    rebuild: Rebuild | None = None

    def __post_init__(self) -> None:
        count = len(self.updates)
        if not count:
            raise AttackError("there is no update to audit")
        if self.images.ndim != 5 or self.labels.shape != self.images.shape[:2]:
            raise AttackError(
                f"the truth is {tuple(self.images.shape)} with labels {tuple(self.labels.shape)}, "
                "not (updates, n, c, h, w) and (updates, n)"
            )
        if len(self.images) != count or len(self.stages) not in (0, count):
            raise AttackError(f"{count} updates, and the truth of {len(self.images)}")
        _check_labels(self.labels, self.classes)
        low, high = float(self.images.min()), float(self.images.max())
        if not self.bounds[0] <= low <= high <= self.bounds[1]:
            raise AttackError(
                f"pixels span {low:.2f} to {high:.2f}, and the bounds are {self.bounds[0]:.2f} to "
                f"{self.bounds[1]:.2f}: name the least and the greatest that the model is fed "
                "(gradient_inversion: {bounds: [low, high]})"
            )
        if (self.surrogate is None) != (self.defense == "none"):
            raise AttackError(f"defense {self.defense!r} and its surrogate do not go together")
        if not self.stages:
            found = tuple("trained" if update.round else "untrained" for update in self.updates)
            object.__setattr__(self, "stages", found)

    @property
    def update_transform(self) -> UpdateTransform | None:
        """Of a defense that changes what is sent, and not what is computed."""
        return None if self.surrogate is None else self.surrogate.update_transform

    @property
    def batch(self) -> int:
        """Images in each update."""
        return self.images.shape[1]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one image, ``(c, h, w)``."""
        return tuple(self.images.shape[2:])

    def scaled(self, images: Tensor) -> Tensor:
        """Images from the bounds to [0, 1], on which metrics and pictures are."""
        low, high = self.bounds
        return (images - low) / (high - low)


def probe(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    protection: Protection | None = None,
    public: PublicData | None = None,
    batch: int = 1,
    bounds: tuple[float, float] = (0.0, 1.0),
    learning_rate: float = 0.1,
    training: LocalTraining | None = None,
    stage: str = "untrained",
    seed: int = 0,
) -> Subject:
    """Make the updates of silos that have this model and a few images each, without any job.

    Every silo has a fresh lock of its own. It protects nothing and is drawn from the seed, so that
    the same audit can be run again.

    Args:
        model: with the weights that the server would send. It is not changed.
        images: ``(m, c, h, w)`` within the bounds.
        labels: ``(m,)``.
        protection: the defense; None for none.
        public: data of the same kind.
        batch: images a silo; what is left over is left out.
        bounds: see `Subject`.
        learning_rate: of the silos' SGD.
        training: see `Subject`.
        stage: of the model's weights: "untrained" or "trained".
        seed: of the locks.

    Raises:
        AttackError: model, images and labels do not fit together.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> probe(net, torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 2, 0]), batch=2).batch
        2

    """
    count = len(images) // batch
    if not count:
        raise AttackError(f"{len(images)} images are not enough for one update of {batch}")
    classes = count_classes(model, images)
    _check_labels(labels, classes)
    shown = images[: count * batch].reshape(count, batch, *images.shape[1:])
    marks = labels[: count * batch].reshape(count, batch)
    updates: list[ClientUpdate] = []
    secrets: list[Mapping[str, Tensor]] = []
    for index in range(count):
        silo, private, values = _silo(model, protection, seed, index)
        made = train_update(
            silo,
            shown[index],
            marks[index],
            learning_rate=learning_rate,
            training=training,
            private=private,
            silo=index,
        )
        update_transform = protection.surrogate.update_transform if protection else None
        if update_transform is not None:
            made, values = update_transform.protect(made, _drawn_for(seed, index))
        updates.append(_share(made, updates[0]) if updates else made)
        secrets.append(values)
    return Subject(
        updates=tuple(updates),
        images=shown,
        labels=marks,
        model=model,
        classes=classes,
        defense=protection.name if protection else "none",
        surrogate=protection.surrogate if protection else None,
        secrets={n: torch.stack([s[n] for s in secrets]) for n in secrets[0]} or None,
        public=public,
        stages=(stage,) * count,
        training=training,
        plain=model.state_dict(),
        bounds=bounds,
    )


def from_capture(
    capture: Capture,
    truth: Truth,
    model: nn.Module,
    *,
    protection: Protection | None = None,
    secrets_of: Callable[[Sequence[ClientUpdate]], Mapping[str, Tensor]] | None = None,
    public: PublicData | None = None,
    training: LocalTraining | None = None,
    limit: int | None = None,
    trained_from: int = 1,
) -> Subject:
    """What a job sent, and what its silos trained on, as far as the truth says.

    Args:
        capture: of the job.
        truth: of some or all of its updates, each of as many images.
        model: the job's, unprotected; its own weights do not matter.
        protection: the job's defense; None for none.
        secrets_of: gives the private state behind updates, ``(u, *shape)``, where somebody has it.
        public: data of the same kind.
        training: see `Subject`.
        limit: updates of each stage, at the most.
        trained_from: the first round whose weights count as trained.

    Raises:
        AttackError: capture, truth and model do not fit together, or the capture is damaged.

    """
    entries = capture.entries()
    foreign = sorted(set(truth) - set(entries))
    if foreign:
        raise AttackError(
            f"the truth has round {foreign[0][0]}, silo {foreign[0][1]}, which the capture has not"
        )
    early = [entry for entry in entries if entry in truth and entry[0] < trained_from]
    late = [entry for entry in entries if entry in truth and entry[0] >= trained_from]
    chosen = early[:limit] + late[:limit]
    sizes = {tuple(truth[entry][0].shape) for entry in chosen}
    if len(sizes) != 1:
        raise AttackError(f"the truth's updates must be of one shape, not {sorted(sizes)}")
    updates = tuple(capture.load(*entry) for entry in chosen)
    _check_model(model, updates[0])
    images = torch.stack([truth[entry][0] for entry in chosen])
    return Subject(
        updates=updates,
        images=images,
        labels=torch.stack([truth[entry][1] for entry in chosen]),
        model=model,
        classes=count_classes(model, images[0]),
        defense=protection.name if protection else "none",
        surrogate=protection.surrogate if protection else None,
        secrets=secrets_of(updates) if secrets_of else None,
        public=public,
        stages=tuple("untrained" if entry in early else "trained" for entry in chosen),
        training=training,
        bounds=capture.bounds,
    )


def _silo(
    model: nn.Module, protection: Protection | None, seed: int, index: int
) -> tuple[nn.Module, tuple[str, ...], Mapping[str, Tensor]]:
    """A new silo's model, the names in its state that are private, and the oracle's knowledge."""
    if protection is None or protection.surrogate.update_transform is not None:
        return model, (), {}
    generator = _drawn_for(seed, index)
    if protection.fresh is not None:
        silo, values = protection.fresh(model, generator)
        return silo, (), values
    known = protection.surrogate
    values = {name: value[0] for name, value in known.draw(1, generator).items()}
    silo = deepcopy(known.model)
    with torch.no_grad():
        for name, parameter in silo.named_parameters():
            if name in values:
                parameter.copy_(values[name])
    return silo, known.names, values


def _drawn_for(seed: int, index: int) -> torch.Generator:
    """Of a silo's lock."""
    return torch.Generator().manual_seed(1_000_003 * (seed + 1) + index)


def _share(update: ClientUpdate, first: ClientUpdate) -> ClientUpdate:
    """The same update, with what was sent in one memory, if it was the same to all."""
    same = set(update.before) == set(first.before) and all(
        torch.equal(value, first.before[name]) for name, value in update.before.items()
    )
    if not same:
        return update
    return replace(update, before=first.before)


def _check_labels(labels: Tensor, classes: int) -> None:
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= classes:
        raise AttackError(
            f"labels span {least} to {most}, and the model has classes 0 to {classes - 1}"
        )


def _check_model(model: nn.Module, update: ClientUpdate) -> None:
    state = model.state_dict()
    for name, value in sorted(update.before.items()):  # a file has them in any order
        own = state.get(name)
        if own is None or own.shape != value.shape:
            has = "has no such entry" if own is None else f"has {tuple(own.shape)}"
            raise AttackError(
                f"the capture is of another model: {name} is {tuple(value.shape)}, the model {has}"
            )
