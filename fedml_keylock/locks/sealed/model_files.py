"""Writes the server's sealed checkpoints and the silos' open models, as safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ... import files
from ...disk import write_private
from ...errors import ConfigError, UpdateRefused
from .record import Record
from .sealing import TRAILER

__all__ = [
    "CHECKPOINT",
    "FINAL",
    "check_place",
    "open_checkpoint",
    "read_round",
    "write_checkpoint",
    "write_model",
]

ROUND = "round"
CHECKPOINT, FINAL = "keylock.checkpoint:", "keylock.save_model:"
"""Names of the two files in messages."""


def write_checkpoint(path: Path, total: Mapping[str, Tensor], *, round_index: int) -> None:
    """Write the sealed sum of a round, whole or not at all, for its owner only.

    Args:
        path: of the file.
        total: sealed.
        round_index: of the round.

    """
    kept = {name: words.contiguous() for name, words in total.items()}
    metadata = {"fedml_keylock": "sealed checkpoint 1", ROUND: str(round_index)}
    check_place(path, what=CHECKPOINT)
    write_private(path, save(kept, metadata=metadata), what=CHECKPOINT)


def write_model(path: Path, state: Mapping[str, Tensor], *, rounds: int) -> None:
    """Write a silo's open model: a safetensors file that any tool can load, for its owner only.

    Args:
        path: of the file.
        state: the opened average.
        rounds: how many rounds it was trained for.

    """
    kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    check_place(path, what=FINAL)
    write_private(path, save(kept, metadata={"rounds": str(rounds)}), what=FINAL)


def check_place(path: Path, *, what: str) -> None:
    """Check before training that a file can be written to its place.

    Args:
        path: of the file.
        what: name of the file in messages.

    Raises:
        ConfigError: the file cannot be written.

    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.check_place(path)
        with TemporaryFile(dir=path.parent) as trial:
            trial.write(b"trial")
    except OSError as error:
        raise ConfigError(f"{what} {path}: cannot be written: {error.strerror}") from None


def read_round(path: Path) -> int | None:
    """The round of a sealed checkpoint; None for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get(ROUND, "")
    except (OSError, SafetensorError):
        return None
    return int(found) if found.isdecimal() else None


def open_checkpoint(
    record: Record, total: Mapping[str, Tensor], *, round_index: int | None, source: Path
) -> dict[str, Tensor]:
    """The model in a sealed checkpoint.

    Args:
        record: from a silo's vault.
        total: the sealed sum.
        round_index: of the checkpoint.
        source: where it comes from, for messages.

    Raises:
        ConfigError: the record belongs to another round or job.

    """
    if TRAILER not in total:
        raise ConfigError(f"{source}: it is not sealed; load it as it is")
    if tuple(total[TRAILER].tolist()) == record.came:
        return dict(record.encoding.base)  # the model that the vault's round began with
    if round_index is not None and round_index != record.round:
        raise ConfigError(
            f"{source}: it is of round {round_index}, and the vault opens the last checkpoint "
            f"only: that of round {record.round}"
        )
    try:
        return record.open(total).state
    except UpdateRefused:
        raise ConfigError(
            f"{source}: not of this vault's job, or changed since: it is not the sum of what the "
            f"silos sent in round {record.round}"
        ) from None
