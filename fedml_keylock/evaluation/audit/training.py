"""Simulates silos' rounds: makes the updates of given images on a given model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...errors import AttackError, first_line
from ...inversion import CROSS_ENTROPY, LocalTraining, Loss, PublicData, logits_of
from ...inversion.outputs import described
from ...tensors import copied, copy_of, one_thread
from ...types import ClientUpdate
from .subject import Protection, Subject, check_labels

__all__ = ["output_shape", "probe", "train_update"]


def train_update(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    learning_rate: float,
    training: LocalTraining | None = None,
    loss: Loss = CROSS_ENTROPY,
    private: Collection[str] = (),
    silo: int = 0,
    round_index: int = 0,
) -> ClientUpdate:
    """The update of a silo that trains a copy of this model on these images.

    Args:
        model: the model; it is not changed.
        images: ``(n, c, h, w)``.
        labels: ``(n, ...)``, as the loss takes them.
        learning_rate: learning rate of SGD.
        training: the round's training; None for one plain step on all the images.
        loss: the loss to minimise.
        private: names in the model's state that are not sent.
        silo: index of the silo, for the update.
        round_index: index of the round, for the update.

    Raises:
        AttackError: the model cannot be trained on these images.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> update = train_update(net, torch.rand(1, 1, 2, 2), torch.tensor([1]), learning_rate=0.1)
        >>> update.pseudo_gradient("1.weight").shape
        torch.Size([2, 4])

    """
    copy = copy_of(model).train()
    before = _public(copy, private)
    how = training or LocalTraining(batch_size=len(images))
    optimizer = torch.optim.SGD(
        [parameter for parameter in copy.parameters() if parameter.requires_grad],
        lr=learning_rate,
        momentum=how.momentum,
        nesterov=how.nesterov,
        weight_decay=how.weight_decay,
    )
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(silo)  # for dropout; not a GPU's
        for _ in range(how.epochs):
            for start in range(0, len(images), how.batch_size):
                step = slice(start, start + how.batch_size)
                optimizer.zero_grad()
                try:
                    loss(logits_of(copy(images[step])), labels[step]).backward()  # type: ignore[no-untyped-call]  # torch
                except AttackError:
                    raise
                except Exception as error:  # whatever the model raises
                    raise _unfit(images, error) from None
                optimizer.step()
    after = _public(copy, private)
    return ClientUpdate(before, after, learning_rate, len(images), silo, round_index)


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
    loss: Loss = CROSS_ENTROPY,
    stage: str = "untrained",
    seed: int = 0,
) -> Subject:
    """Make the updates of silos with this model and a few images each, without a job.

    Every silo gets a lock of its own, drawn from the seed so that the audit can be repeated. Such a
    lock protects nothing.

    Args:
        model: with the weights that the server would send; it is not changed.
        images: ``(m, c, h, w)`` within the bounds.
        labels: ``(m, ...)``, as in the data set.
        protection: the defense; None for none.
        public: public data of the same kind.
        batch: images in a silo; the remainder is left out.
        bounds: see `Subject`.
        learning_rate: learning rate of the silos' SGD.
        training: see `Subject`.
        loss: the loss that the silos minimise.
        stage: "untrained" or "trained", of the model's weights.
        seed: seed of the locks.

    Raises:
        AttackError: model, images and labels do not fit together.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
        >>> probe(net, torch.rand(4, 1, 12, 12), torch.tensor([0, 1, 2, 0]), batch=2).batch
        2

    """
    count = len(images) // batch
    if not count:
        raise AttackError(f"{len(images)} images are not enough for one update of {batch}")
    outputs = output_shape(model, images)
    loss = loss.seen(labels)
    labels = loss.fitted(labels, outputs)
    if loss.targets == "classes" and labels.ndim == 1:
        check_labels(labels, outputs[0])
    shown = images[: count * batch].reshape(count, batch, *images.shape[1:])
    marks = labels[: count * batch].reshape(count, batch, *labels.shape[1:])
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
            loss=loss,
            private=private,
            silo=index,
        )
        update_transform = protection.attacker_model.update_transform if protection else None
        if update_transform is not None:
            made, values = update_transform.protect(made, _drawn_for(seed, index))
        updates.append(_share(made, updates[0]) if updates else made)
        secrets.append(values)
    return Subject(
        updates=tuple(updates),
        images=shown,
        labels=marks,
        model=model,
        classes=outputs[0],
        defense=protection.name if protection else "none",
        attacker_model=protection.attacker_model if protection else None,
        secrets={n: torch.stack([s[n] for s in secrets]) for n in secrets[0]} or None,
        public=public,
        stages=(stage,) * count,
        training=training,
        plain=model.state_dict(),
        bounds=bounds,
        loss=loss,
        output_shape=outputs,
    )


def output_shape(model: nn.Module, images: Tensor) -> tuple[int, ...]:
    """Shape of a model's output for one image: its classes, and more if each pixel has a class.

    AttackError if the model does not run on the image, or its output is something else.

    Example:
        >>> output_shape(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.rand(1, 1, 2, 2))
        (3,)

    """
    try:
        with torch.no_grad():
            made = copy_of(model).eval()(images[:1])
    except Exception as error:  # whatever the model raises
        raise _unfit(images, error) from None
    scores = logits_of(made)
    if scores.ndim < 2 or len(scores) != 1:
        raise AttackError(f"the model gives {described(made)}, and no (n, outputs) scores")
    return tuple(scores.shape[1:])


def _public(model: nn.Module, private: Collection[str]) -> Mapping[str, Tensor]:
    return copied({name: t for name, t in model.state_dict().items() if name not in private})


def _unfit(images: Tensor, error: Exception) -> AttackError:
    said = first_line(error)
    if "more than 1 value per channel" in said:  # batch normalisation of a single number
        said += ": it needs larger pictures (--size) or more of them (--batch)"
    return AttackError(f"the model cannot be trained on images {tuple(images.shape)}: {said}")


def _silo(
    model: nn.Module, protection: Protection | None, seed: int, index: int
) -> tuple[nn.Module, tuple[str, ...], Mapping[str, Tensor]]:
    """A new silo's model, the names of its private state, and that state for the oracle."""
    if protection is None or protection.attacker_model.update_transform is not None:
        return model, (), {}
    generator = _drawn_for(seed, index)
    if protection.fresh is not None:
        silo, values = protection.fresh(model, generator)
        return silo, (), values
    known = protection.attacker_model
    values = {name: value[0] for name, value in known.draw(1, generator).items()}
    silo = copy_of(known.model)
    with torch.no_grad():
        for name, parameter in silo.named_parameters():
            if name in values:
                parameter.copy_(values[name])
    return silo, known.names, values


def _drawn_for(seed: int, index: int) -> torch.Generator:
    """Seed of a silo's lock."""
    return torch.Generator().manual_seed(1_000_003 * (seed + 1) + index)


def _share(update: ClientUpdate, first: ClientUpdate) -> ClientUpdate:
    """The update, sharing the tensors of the state sent if that is the same for all."""
    same = set(update.before) == set(first.before) and all(
        torch.equal(value, first.before[name]) for name, value in update.before.items()
    )
    if not same:
        return update
    return replace(update, before=first.before)
