"""Makes the subjects of `fedml-keylock audit`: from a job's capture, or from a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import click
import torch
from torch import Tensor, nn

from ..defense import Defense
from ..errors import AttackError, ConfigError
from ..evaluation.audit import (
    Protection,
    Rounds,
    Subject,
    accuracy_by_round,
    from_capture,
    load_pictures,
    load_truth,
    probe,
)
from ..evaluation.audit.training import output_shape
from ..evaluation.capture import Capture
from ..evaluation.leakage import Interval
from ..inversion import CROSS_ENTROPY, LocalTraining, Loss, PublicData, loss_of
from ..locks import Lock
from ..locks.entropy import seeded_uniform
from ..plugins import defense_of
from ..silos import own_locks, silo_secrets
from ..tensors import deep_copy
from ..types import AttackerModel
from .deploy import read_checkpoint, unwrapped
from .job import build_model
from .job_file import lock_settings
from .request import Request

__all__ = ["Material", "captured", "probes"]

MOST_PUBLIC = 1000
SIZES = (32, 28, 64, 224)


@dataclass(frozen=True)
class Material:
    """The subjects of an audit, and facts for its report.

    Attributes:
        subjects: one for every seed, or one for all.
        facts: facts on the run, in plain values.
        accuracy: defense to role to interval; empty if it cannot be measured.
        accuracy_rounds: defense to role to ``(round, share)``.

    """

    subjects: Subject | Sequence[Subject]
    facts: Mapping[str, Any]
    accuracy: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    accuracy_rounds: Mapping[str, Rounds] = field(default_factory=dict)


def captured(request: Request) -> Material:
    """The subject of a job's capture and its truth."""
    assert request.capture is not None
    assert request.truth is not None
    capture = Capture.open(request.capture)
    meta = capture.meta
    if str(meta.get("client_optimizer") or "sgd").lower() != "sgd":
        raise AttackError(
            f"capture {request.capture}: its silos trained with {meta['client_optimizer']}; an "
            "audit inverts SGD"
        )
    model = _model(request, 0)
    truth = load_truth(request.truth)
    protection, own_lock = None, None
    settings = meta.get("settings") or {}
    if meta.get("defense"):
        protection, defense = _protection(str(meta["defense"]), settings, model)
        if request.vault is not None:
            if not isinstance(defense, Lock):
                raise ConfigError(
                    f"--vault is keylock's; the capture's defense is {meta['defense']}"
                )
            own_lock = own_locks(model, defense, request.vault)
    batch = int(meta.get("batch_size") or 0)
    images = next(iter(truth.values()))[0]
    largest = max(len(images) for images, _ in truth.values())
    training = None
    epochs = request.epochs or int(meta.get("epochs") or 1)
    if epochs > 1 or 0 < batch < largest:
        training = LocalTraining(batch_size=batch or largest, epochs=epochs)
    loss = _loss(request, meta)
    public = _public(request, capture, images)
    subject = from_capture(
        capture,
        truth,
        model,
        protection=protection,
        secrets_of=partial(silo_secrets, model, own_lock) if own_lock else None,
        public=public,
        training=training,
        loss=loss,
        limit=-(-request.images // largest),
    )
    again = partial(_rebuild, request.builder, meta.get("defense"), settings)
    subject = replace(subject, rebuild=again)
    if own_lock is None and subject.update_transform is not None and max(r for r, _ in truth):
        said = "without --vault round 0 alone is audited: later models are open to silos only"
        click.echo(f"fedml-keylock: {said}", err=True)
    facts = {"capture": str(request.capture), "rounds": sorted({u.round for u in subject.updates})}
    if public is None:
        return Material(subject, facts)
    facts["data"] = f"{len(public.images)} pictures of {request.data} are public"
    if not subject.has_classes:
        return Material(subject, facts)
    final, rounds = accuracy_by_round(
        capture, model, public, own_lock, attacker_model=subject.attacker_model
    )
    name = subject.defense
    return Material(subject, facts, {name: final} if final else {}, {name: rounds})


def _public(request: Request, capture: Capture, images: Tensor) -> PublicData | None:
    """Public data for a capture: the pictures of ``--data``, shaped as the captured images."""
    if request.data is None:
        return None
    low, high = capture.bounds
    if (low, high) != (0.0, 1.0):
        raise ConfigError(
            f"--data: pictures are on 0 to 1, and the job's model was fed {low:.2f} to "
            f"{high:.2f}: normalise inside the model, or leave --data out"
        )
    found, labels = load_pictures(
        request.data,
        size=(images.shape[2], images.shape[3]),
        channels=images.shape[1],
        labels=request.labels,
        limit=MOST_PUBLIC,
        say=_say,
    )
    return PublicData(found, labels)


def probes(request: Request) -> Material:
    """The subjects of a model's simulated updates, one for each seed."""
    assert request.data is not None
    model = _model(request, 0)
    channels = _channels(model)
    batch = request.batch or 1
    size = request.size or _size(request.builder, model, channels)
    images, labels = load_pictures(
        request.data,
        size=(size, size),
        channels=channels,
        labels=request.labels,
        limit=request.images + MOST_PUBLIC,
        say=_say,
    )
    shown, rest = images[: request.images], images[request.images :]
    if len(shown) < request.images:
        click.echo(
            f"--images {request.images}: {request.data} has {len(shown)} pictures, which are "
            "attacked, and none is left for the attacker",
            err=True,
        )
    public = PublicData(rest, labels[request.images :]) if len(rest) else None
    training = None
    if request.epochs is not None:
        training = LocalTraining(batch_size=batch, epochs=request.epochs)
    name = request.defense or "keylock"
    settings = {}
    if name == "keylock":
        settings = lock_settings(request.config, **request.lock_options)
    elif request.config is not None or any(request.lock_options.values()):
        raise click.UsageError("--config, --lock and --layers are keylock's")
    kind, loss = None if name == "none" else name, _loss(request, {})
    again = partial(_rebuild, request.builder, kind, settings)
    subjects = []
    for seed in range(request.seeds):
        model = _model(request, seed)
        known, defense = _protection(kind, settings, model) if kind else (None, None)
        if request.sums and defense is not None and defense.adds_noise:
            raise AttackError(
                f"--sum: {defense.title} adds noise by how many silos a job has, which a model "
                "alone does not tell; audit a job's CAPTURE"
            )
        subject = probe(
            model,
            shown,
            labels[: request.images],
            protection=known,
            public=public,
            batch=batch,
            training=training,
            loss=loss,
            stage="untrained" if request.weights is None else "trained",
            seed=seed,
        )
        subjects.append(replace(subject, rebuild=again))
    facts = {
        "data": f"{len(shown)} pictures of {request.data}, {size} x {size}; "
        f"{len(rest)} others are public",
        "attacked": f"updates of one silo each, of {batch} images",
        "weights": "drawn" if request.weights is None else str(request.weights),
    }
    return Material(subjects, facts)


def _loss(request: Request, meta: Mapping[str, Any]) -> Loss:
    """The requested loss, or that of the capture's job, or else cross entropy as a guess."""
    if request.loss is not None:
        return loss_of(request.loss, where="--loss")
    named = str(meta.get("loss") or "")
    if not named or meta.get("loss_assumed"):
        return replace(CROSS_ENTROPY, assumed=True)
    try:
        if ":" not in named:  # a capture must not decide what is imported here
            return loss_of(named, where="--loss")
    except ConfigError:
        pass
    raise ConfigError(
        f"--loss: the captured job minimised {named}: name it here as MODULE:FUNCTION"
    )


def _built(builder: str, seed: int) -> nn.Module:
    """A model, with its random weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(builder)


def _model(request: Request, seed: int) -> nn.Module:
    """The model of `_built`, or with the weights of a file."""
    model = _built(request.builder, seed)
    if request.weights is not None:
        try:
            model.load_state_dict(unwrapped(read_checkpoint(request.weights), model))
        except ConfigError as error:
            raise ConfigError(f"--weights {error}") from None
        except RuntimeError as error:
            said = " ".join(str(error).split())[:200]
            raise ConfigError(f"--weights {request.weights}: not of this model: {said}") from None
    return model


def _say(line: str) -> None:
    click.echo(f"fedml-keylock: --data {line}", err=True)


def _rebuild(
    builder: str, defense: str | None, settings: Mapping[str, Any]
) -> tuple[nn.Module, AttackerModel | None]:
    """Build the attacker's models in another rank. Updates bring the weights."""
    model = _built(builder, 0)
    return model, _protection(defense, settings, model)[0].attacker_model if defense else None


def _size(builder: str, model: nn.Module, channels: int) -> int:
    """Side in pixels of the pictures that a model is made for."""
    start, _, name = builder.partition(":")
    if start == "torchvision":
        from torchvision import models

        published = list(models.get_model_weights(name))
        return int(published[-1].transforms().crop_size[0]) if published else 224
    for size in SIZES:
        try:
            output_shape(model, torch.zeros(1, channels, size, size))
        except AttackError:
            continue
        return size
    raise ConfigError(f"--model {builder}: takes no pictures of {SIZES}: give --size")


def _channels(model: nn.Module) -> int:
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)


def _protection(
    name: str, settings: Mapping[str, Any], model: nn.Module
) -> tuple[Protection, Defense]:
    defense = defense_of(name, settings)
    fresh = partial(_fresh, defense) if isinstance(defense, Lock) else None
    return Protection(defense.title, defense.attacker_model(model), fresh), defense


def _fresh(
    lock: Lock, model: nn.Module, generator: torch.Generator
) -> tuple[nn.Module, Mapping[str, Tensor]]:
    """A reproducible lock for an audit, which protects nothing."""
    copy = deep_copy(model)
    lock.lock(copy, uniform=seeded_uniform(generator))
    return copy, lock.secret_variables(copy)
