"""The options of `fedml-keylock audit`, checked before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from ..errors import ConfigError

__all__ = ["Request"]


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
    lock_kind: str | None
    layers: str | None
    vault: Path | None
    attacks: str
    fields: tuple[str, ...]
    knowledge: str
    loss: str | None
    sums: str | None
    images: int
    batch: int | None
    epochs: int | None
    seeds: int
    workers: int | None
    output: Path
    no_images: bool

    def __post_init__(self) -> None:
        if self.capture is None and self.data is None:
            raise click.UsageError("give a CAPTURE with its --truth, or --data for a model alone")
        if self.labels is not None and self.data is None:
            raise click.UsageError("--labels goes with --data")
        if self.capture is not None and self.truth is None:
            raise click.UsageError("CAPTURE needs --truth: what its silos trained on")
        probing = {"--truth": self.truth, "--vault": self.vault}
        capturing = {
            "--size": self.size,
            "--batch": self.batch,
            "--weights": self.weights,
            "--defense": self.defense,
            "--config": self.config,
            "--lock": self.lock_kind,
            "--layers": self.layers,
        }
        for name, value in (probing if self.capture is None else capturing).items():
            if value is not None:
                role = "only with" if self.capture is None else "not with"
                raise click.UsageError(f"{name} goes {role} a CAPTURE")
        for what, folder in {"CAPTURE": self.capture, "--data": self.data}.items():
            if folder is not None and not folder.is_dir():
                raise ConfigError(f"{what} {folder}: no such folder")
        files = {"--truth": self.truth, "--labels": self.labels, "--weights": self.weights}
        for what, file in {**files, "--config": self.config}.items():
            if file is not None and not file.exists():
                raise ConfigError(f"{what} {file}: no such file")

    @property
    def lock_options(self) -> dict[str, str | None]:
        """The options that choose the lock."""
        return {"lock_kind": self.lock_kind, "layers": self.layers}
