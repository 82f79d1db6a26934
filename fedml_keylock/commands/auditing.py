"""What `fedml-keylock audit` does with its options."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..builtin import KeyLockDefense
from ..errors import AttackError, ConfigError
from ..evaluation.audit import (
    Crew,
    Protection,
    Subject,
    audit,
    from_capture,
    load_pictures,
    load_truth,
    probe,
)
from ..evaluation.audit.training import count_classes
from ..evaluation.capture import Capture
from ..evaluation.report import write_tensorboard
from ..inversion import Attack, LocalTraining, PublicData
from ..keylock import KeyLockConfig, Vault, effective_state, lock_model
from ..keylock.key import seeded_uniform
from ..keylock.vault import Cipher
from ..plugins import manager, metrics, one_of
from ..types import ClientUpdate, Defense, Surrogate
from .job import build_model, keylock_settings

__all__ = ["Request", "run_audit", "silo_secrets"]

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "inverting_gradients": {"steps": 500, "learning_rate": 0.2, "secret_learning_rate": 0.02},
    "dlg": {"steps": 50, "restarts": 2},
}
"""Settings with which an audit takes minutes; the sources' are longer (`--set` has them back)."""
MOST_PUBLIC = 1000
SIZES = (32, 28, 64, 224)


@dataclass(frozen=True)
class Request:
    """The command's options, by their names: see its help."""

    capture: Path | None
    truth: Path | None
    builder: str
    data: Path | None
    labels: Path | None
    size: int | None
    weights: Path | None
    defense: str | None
    config: Path | None
    module: str | None
    targets: str | None
    vault: Path | None
    attacks: str
    fields: tuple[str, ...]
    knowledge: str
    images: int
    batch: int
    epochs: int | None
    seeds: int
    workers: int | None
    output: Path
    no_images: bool

    def __post_init__(self) -> None:
        if (self.capture is None) == (self.data is None):
            raise click.UsageError("give a CAPTURE with its --truth, or --data for a model alone")
        if self.capture is not None and self.truth is None:
            raise click.UsageError("CAPTURE needs --truth: what its silos trained on")
        probing = {"--truth": self.truth, "--vault": self.vault}
        capturing = {
            "--weights": self.weights,
            "--defense": self.defense,
            "--config": self.config,
            "--module": self.module,
            "--targets": self.targets,
            "--labels": self.labels,
        }
        for name, value in (probing if self.capture is None else capturing).items():
            if value is not None:
                role = "only with" if self.capture is None else "not with"
                raise click.UsageError(f"{name} goes {role} a CAPTURE")
        if self.config is not None and (self.module or self.targets):
            raise click.UsageError("--config has module and targets: give it, or these")


def run_audit(request: Request, crew: Crew) -> Path:
    """Audit, write the report, and say what it says.

    Returns:
        The page's path.

    Raises:
        KeyLockError: in one line.

    """
    attacks = _attacks(request)
    levels = _listed(request.knowledge)
    made = _captured if request.capture is not None else _probes
    subjects, facts = made(request)
    report = audit(
        subjects,
        attacks,
        levels,
        output=request.output,
        crew=crew,
        seeds=request.seeds,
        metrics=metrics(),
        job={
            "command": shlex.join(["fedml-keylock", *sys.argv[1:]]),
            "model": request.builder,
            **facts,
            "attacks": {name: _differs(name, request) for name in attacks},
            "versions": {p: version(p) for p in ("fedml-keylock", "torch")},
        },
        on_error=_tell,
        progress=True,
    )
    paths = report.save(request.output, images=not request.no_images)
    write_tensorboard(report, request.output / "tensorboard")
    manager().hook.after_report(report=report.to_dict(), folder=str(request.output))
    page = next(path for path in paths if path.suffix == ".html")
    for text in (report.table(), "", report.verdict(), "", f"report: {page}"):
        click.echo(text)
    return page


def silo_secrets(
    model: nn.Module, defense: KeyLockDefense, folder: Path, updates: Sequence[ClientUpdate]
) -> dict[str, Tensor]:
    """For the oracle: what each silo's lock came to when the round of its update began.

    Args:
        model: the job's, unprotected.
        defense: the job's.
        folder: the silos' vaults.
        updates: u of them.

    Returns:
        Name to ``(u, *shape)``.

    Raises:
        VaultError: a vault is missing, or is another's.

    """
    layout = defense.describe(model).layout
    cipher = Cipher.from_environment() if defense.config.encrypt_vault else None
    states = []
    for update in updates:
        vault = Vault(folder, update.silo, layout, cipher)
        path = vault.history_path(update.round)
        if vault.exists() and not path.exists():
            raise ConfigError(
                f"--vault {folder}: it has not what round {update.round} of silo {update.silo} "
                "began with: the job's YAML must say keylock: {keep_history: true}"
            )
        copy = deepcopy(model)
        lock_model(copy, defense.config)
        vault.load(copy, path)
        states.append(effective_state(copy))
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def _captured(request: Request) -> tuple[Subject, dict[str, Any]]:
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
    protection, secrets_of = None, None
    settings = meta.get("settings") or {}
    if meta.get("defense"):
        protection, defense = _protection(str(meta["defense"]), settings, model)
        if request.vault is not None:
            if not isinstance(defense, KeyLockDefense):
                raise ConfigError(
                    f"--vault is keylock's; the capture's defense is {meta['defense']}"
                )
            secrets_of = partial(silo_secrets, model, defense, request.vault)
    batch = int(meta.get("batch_size") or 0)
    largest = max(len(images) for images, _ in truth.values())
    training = None
    if request.epochs is not None or 0 < batch < largest:
        training = LocalTraining(batch_size=batch or largest, epochs=request.epochs or 1)
    subject = from_capture(
        capture,
        truth,
        model,
        protection=protection,
        secrets_of=secrets_of,
        training=training,
        limit=-(-request.images // largest),
    )
    subject = replace(
        subject, rebuild=partial(_rebuild, request.builder, meta.get("defense"), settings)
    )
    return subject, {"capture": str(request.capture), "rounds": sorted({r for r, _ in truth})}


def _probes(request: Request) -> tuple[list[Subject], dict[str, Any]]:
    assert request.data is not None
    model = _model(request, 0)
    channels = _channels(model)
    size = request.size or _size(request.builder, model, channels)
    images, labels, _ = load_pictures(
        request.data,
        size=(size, size),
        channels=channels,
        labels=request.labels,
        limit=request.images + MOST_PUBLIC,
    )
    shown, rest = images[: request.images], images[request.images :]
    public = PublicData(rest, labels[request.images :]) if len(rest) else None
    training = None
    if request.epochs is not None:
        training = LocalTraining(batch_size=request.batch, epochs=request.epochs)
    name = request.defense or "keylock"
    settings = _settings(request, name)
    subjects = []
    for seed in range(request.seeds):
        model = _model(request, seed)
        subject = probe(
            model,
            shown,
            labels[: request.images],
            protection=None if name == "none" else _protection(name, settings, model)[0],
            public=public,
            batch=request.batch,
            training=training,
            stage="untrained" if request.weights is None else "trained",
            seed=seed,
        )
        kind = None if name == "none" else name
        again = partial(_rebuild, request.builder, kind, settings)
        subjects.append(replace(subject, rebuild=again))
    facts = {
        "data": f"{len(shown)} pictures of {request.data}, {size} x {size}; "
        f"{len(rest)} others are public",
        "attacked": f"updates of one silo each, of {request.batch} images",
        "weights": "drawn" if request.weights is None else str(request.weights),
    }
    return subjects, facts


def _model(request: Request, seed: int) -> nn.Module:
    """The model, its own random start drawn from the seed, or with the weights of a file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _made(request.builder)
    if request.weights is not None:
        try:
            model.load_state_dict(load_file(request.weights))
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"--weights {request.weights}: cannot be read: {error}") from None
        except RuntimeError as error:
            said = " ".join(str(error).split())[:200]
            raise ConfigError(f"--weights {request.weights}: not of this model: {said}") from None
    return model


def _rebuild(
    builder: str, defense: str | None, settings: Mapping[str, Any]
) -> tuple[nn.Module, Surrogate | None]:
    """The attacker's models, in another rank. Their weights do not matter: he has what was sent."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _made(builder)
    return model, _protection(defense, settings, model)[0].surrogate if defense else None


def _made(builder: str) -> nn.Module:
    start, _, name = builder.partition(":")
    return _torchvision(name) if start == "torchvision" else build_model(builder)


def _torchvision(name: str) -> nn.Module:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise ConfigError(f"--model torchvision:{name}: torchvision has no such classifier")
    own = {"googlenet": {"aux_logits": False}, "inception_v3": {"aux_logits": False}}
    model: nn.Module = models.get_model(name, weights=None, **own.get(name, {}))
    return model


def _size(builder: str, model: nn.Module, channels: int) -> int:
    """The side of the pictures that a model is made for."""
    start, _, name = builder.partition(":")
    if start == "torchvision":
        from torchvision import models

        published = list(models.get_model_weights(name))
        return int(published[-1].transforms().crop_size[0]) if published else 224
    for size in SIZES:
        try:
            count_classes(model, torch.zeros(1, channels, size, size))
        except AttackError:
            continue
        return size
    raise ConfigError(f"--model {builder}: takes no pictures of {SIZES}: give --size")


def _channels(model: nn.Module) -> int:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return 3


def _settings(request: Request, name: str) -> dict[str, Any]:
    if name != "keylock":
        if request.module or request.targets:
            raise click.UsageError("--module and --targets are keylock's")
        return {}
    settings = dict(keylock_settings(request.config))
    if request.module:
        settings["module"] = request.module
    if request.targets:
        words = request.targets
        settings["targets"] = words if words in ("first", "all") else words.split(",")
    return settings


def _protection(
    name: str, settings: Mapping[str, Any], model: nn.Module
) -> tuple[Protection, Defense]:
    defense: Defense = one_of("defenses", name)(settings)
    if not isinstance(defense, KeyLockDefense):
        return Protection(name, defense.surrogate(model)), defense
    config = defense.config
    targets = config.targets if isinstance(config.targets, str) else ",".join(config.targets)
    title = f"{name}:{config.module}:{targets}{':chained' if config.chained else ''}"
    protection = Protection(title, defense.surrogate(model), partial(_fresh, config=config))
    return protection, defense


def _fresh(
    model: nn.Module, generator: torch.Generator, *, config: KeyLockConfig
) -> tuple[nn.Module, Mapping[str, Tensor]]:
    """A lock that protects nothing, drawn so that the same audit can be run again."""
    copy = deepcopy(model)
    lock_model(copy, config, uniform=seeded_uniform(generator))
    return copy, effective_state(copy)


def _attacks(request: Request) -> dict[str, Attack]:
    names = _listed(request.attacks)
    for field in request.fields:
        name, dot, rest = field.partition(".")
        if not (dot and "=" in rest) or name not in names:
            raise click.UsageError(
                f"--set {field}: not like {names[0]}.steps=500, with an attack of --attacks"
            )
    return {name: one_of("attacks", name)(**_differs(name, request)) for name in names}


def _differs(name: str, request: Request) -> dict[str, Any]:
    """An attack's settings in this audit, where they are not its own."""
    settings = dict(DEFAULTS.get(name, {}))
    for field in request.fields:
        path, _, value = field.partition("=")
        attack, _, key = path.partition(".")
        if attack == name:
            settings[key] = yaml.safe_load(value)
    return settings


def _listed(words: str) -> list[str]:
    listed = [word.strip() for word in words.split(",") if word.strip()]
    if not listed:
        raise click.UsageError("--attacks and --knowledge need at least one name")
    return listed


def _tell(attack: str, error: AttackError) -> None:
    click.echo(f"fedml-keylock: {attack}: {error}", err=True)
    manager().hook.on_attack_error(attack=attack, error=error)
