"""What crossed the wire, kept on disk: per round the public state sent, per silo the one returned.

A capture holds no truth and no private state, and nothing in it is executable: arrays are
safetensors, the rest is JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import AttackError
from ..types import ClientUpdate

__all__ = ["Capture"]

SCHEMA = "fedml-keylock/capture/1"


@dataclass
class Capture:
    """A folder of captured updates.

    Attributes:
        folder: where it is.
        meta: schema, learning rate, the defense's name and its public settings.

    Example:
        >>> import tempfile, torch
        >>> capture = Capture.create(Path(tempfile.mkdtemp()), {"learning_rate": 0.1})
        >>> update = ClientUpdate({"w": torch.zeros(2)}, {"w": torch.ones(2)}, 0.1)
        >>> capture.add(update)
        >>> Capture.open(capture.folder).updates()[0].silo
        0

    """

    folder: Path
    meta: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def create(cls, folder: Path, meta: Mapping[str, Any]) -> Capture:
        """Start a capture in an empty or new folder.

        Raises:
            AttackError: the folder holds a capture already, or cannot be written.

        """
        capture = cls(folder, {"schema": SCHEMA, **meta})
        if (folder / "capture.json").exists():
            raise AttackError(f"{folder} holds a capture already; move it away or name another")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "capture.json").write_text(json.dumps(capture.meta, indent=1))
        except OSError as error:
            raise AttackError(f"capture {folder}: {error.strerror}") from None
        return capture

    @classmethod
    def open(cls, folder: Path) -> Capture:
        """Open a capture that a job has written.

        Raises:
            AttackError: it is missing, damaged, or of another schema.

        """
        try:
            meta = json.loads((folder / "capture.json").read_text())
        except (OSError, ValueError) as error:
            raise AttackError(f"{folder} is not a capture: {error}") from None
        if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
            raise AttackError(f"{folder} is not a capture of this version ({SCHEMA})")
        return cls(folder, meta)

    def add(self, update: ClientUpdate) -> None:
        """Keep one update.

        Raises:
            AttackError: it cannot be written.

        """
        folder = self._round(update.round)
        try:
            folder.mkdir(exist_ok=True)
            sent = folder / "sent.safetensors"
            if not sent.exists():
                save_file(_plain(update.before), sent)
            meta = {"samples": str(update.samples), "learning_rate": repr(update.learning_rate)}
            save_file(_plain(update.after), folder / f"silo-{update.silo}.safetensors", meta)
        except (OSError, SafetensorError) as error:
            raise AttackError(f"capture {folder}: cannot be written: {error}") from None

    def finish(self, final: Mapping[str, Tensor]) -> None:
        """Keep the public state that training ended with."""
        save_file(_plain(final), self.folder / "final.safetensors")

    def final(self) -> dict[str, Tensor]:
        """The public state that training ended with."""
        return _load(self.folder / "final.safetensors")

    def rounds(self) -> list[int]:
        """The rounds that were captured, in order."""
        return sorted(int(path.name.removeprefix("round-")) for path in self.folder.glob("round-*"))

    def updates(self, round_index: int | None = None) -> list[ClientUpdate]:
        """The updates of one round or of all, by round and silo.

        Raises:
            AttackError: a file is missing or damaged.

        """
        found = []
        for index in self.rounds() if round_index is None else [round_index]:
            folder = self._round(index)
            before = _load(folder / "sent.safetensors")
            silos = sorted(int(p.stem.removeprefix("silo-")) for p in folder.glob("silo-*"))
            for silo in silos:
                after = _load(folder / f"silo-{silo}.safetensors")
                rate = float(self.meta["learning_rate"])
                found.append(ClientUpdate(before, after, rate, silo=silo, round=index))
        return found

    def _round(self, index: int) -> Path:
        return self.folder / f"round-{index:05d}"


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # safetensors wants each tensor whole and in memory of its own
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise AttackError(f"capture {path}: damaged or missing: {error}") from None
