"""Keeps on disk what crossed the wire: the state sent in each round, and each silo's update.

A capture holds no truth, no private state and nothing executable: arrays are safetensors, the rest
is JSON. `index.jsonl` lists every file with its size and SHA-256, so that truncated, changed and
added files are noticed. Someone who rewrites the index too is not: keep a capture where only its
owner can write.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ..errors import AttackError
from ..files import replacing
from ..tensors import tensors_of
from ..types import ClientUpdate

__all__ = ["INDEX", "Capture"]

SCHEMA = "fedml-keylock/capture/2"
INDEX, META, FINAL = "index.jsonl", "capture.json", "final.safetensors"
_NAME = re.compile(
    r"capture\.json|final\.safetensors|round-\d{5,}/(sent(-\d+)?|silo-\d+)\.safetensors"
)


@dataclass
class Capture:
    """A folder of captured updates, which are read from disk when asked for.

    Attributes:
        folder: where it is.
        meta: schema, learning rate, the defense's name and its public settings.

    Example:
        >>> import tempfile, torch
        >>> capture = Capture.create(Path(tempfile.mkdtemp()), {"learning_rate": 0.1})
        >>> capture.add(ClientUpdate({"w": torch.zeros(2)}, {"w": torch.ones(2)}, 0.1))
        >>> capture = Capture.open(capture.folder)
        >>> capture.entries()
        [(0, 0)]
        >>> capture.load(0, 0).after["w"]
        tensor([1., 1.])

    """

    folder: Path
    meta: dict[str, Any] = field(default_factory=dict)
    _files: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    _sent: tuple[int, dict[str, Tensor]] = field(default=(-1, {}), repr=False)
    _layouts: dict[bool, dict[str, tuple[int, ...]]] = field(default_factory=dict, repr=False)

    @classmethod
    def create(cls, folder: Path, meta: Mapping[str, Any]) -> Capture:
        """Start a capture in a new folder; AttackError if it holds one, or cannot be written."""
        capture = cls(folder, {"schema": SCHEMA, **meta})
        if (folder / META).exists():
            raise AttackError(f"{folder} holds a capture already; move it away or name another")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / INDEX).unlink(missing_ok=True)
        except OSError as error:
            raise AttackError(f"capture {folder}: {error.strerror}") from None
        capture._write(META, json.dumps(capture.meta, indent=1).encode())
        return capture

    @classmethod
    def open(cls, folder: Path) -> Capture:
        """Open a capture that a job has written, and check every file's name and size.

        Raises:
            AttackError: it is missing, truncated, of another schema, or holds a foreign file.

        """
        capture = cls(folder)
        try:
            lines = (folder / INDEX).read_text()
            present = {
                path.relative_to(folder).as_posix(): path.stat().st_size
                for path in [folder / META, folder / FINAL, *folder.glob("round-*/*")]
                if path.exists()
            }
        except (OSError, ValueError) as error:
            raise AttackError(f"{folder} is not a capture of this version: {error}") from None
        for number, line in enumerate(lines.splitlines(keepends=True), 1):
            name, entry = _entry(folder, line, number)
            capture._files[name] = entry
        for name, entry in capture._files.items():
            if name not in present:
                raise AttackError(f"capture {folder / name}: it is missing")
            if present[name] != entry["bytes"]:
                raise AttackError(
                    f"capture {folder / name}: it has {present[name]} bytes, and {entry['bytes']} "
                    "were written: it was cut or changed"
                )
        odd = sorted(set(present) - set(capture._files))
        if odd:
            raise AttackError(
                f"capture {folder / odd[0]}: the index does not know it: it is no part of the "
                "capture, or the job was killed while it wrote it; remove it"
            )
        capture.meta = capture._read_meta()
        return capture

    def add(self, update: ClientUpdate, *, own: bool = False) -> None:
        """Keep one update, and once a round the state sent; AttackError if it cannot be written.

        Args:
            update: a silo's update, with the state that it was sent.
            own: this silo was sent a model of its own, which is kept too.

        """
        folder = _round(update.round)
        try:
            (self.folder / folder).mkdir(exist_ok=True)
        except OSError as error:
            raise AttackError(f"capture {self.folder / folder}: {error.strerror}") from None
        sent = f"{folder}/sent-{update.silo}" if own else f"{folder}/sent"
        if f"{sent}.safetensors" not in self._files:
            self._write(f"{sent}.safetensors", save(_plain(update.before)))
        facts = {"samples": update.samples, "learning_rate": update.learning_rate}
        self._write(f"{folder}/silo-{update.silo}.safetensors", save(_plain(update.after)), **facts)

    def finish(self, final: Mapping[str, Tensor]) -> None:
        """Keep the public state that training ended with."""
        self._write(FINAL, save(_plain(final)))

    def final(self) -> dict[str, Tensor]:
        """The public state that training ended with; AttackError without one, or if damaged."""
        if not self.ended:
            raise AttackError(f"capture {self.folder}: the job did not end: there is no {FINAL}")
        return self._load(FINAL)

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and greatest pixel value of the model's inputs; 0 and 1 if not recorded."""
        low, high = self.meta.get("bounds") or (0.0, 1.0)
        return float(low), float(high)

    @property
    def ended(self) -> bool:
        """Whether the job ended, so that there is a final state."""
        return FINAL in self._files

    def entries(self) -> list[tuple[int, int]]:
        """Round and silo of every update, in order."""
        found = [re.fullmatch(r"round-(\d+)/silo-(\d+)\.safetensors", name) for name in self._files]
        return sorted((int(match[1]), int(match[2])) for match in found if match)

    def rounds(self) -> list[int]:
        """The rounds that were captured, in order."""
        return sorted({index for index, _ in self.entries()})

    def sent(self, round_index: int) -> dict[str, Tensor]:
        """The public state that a round began with; errors as of `load`. Caches the last one."""
        if self._sent[0] != round_index:
            self._sent = (round_index, self._load(f"{_round(round_index)}/sent.safetensors"))
        return self._sent[1]

    def load(self, round_index: int, silo: int) -> ClientUpdate:
        """One update. Updates of one round share the state sent, if they are loaded in a row.

        Raises:
            AttackError: there is no such update, a file was changed, or its names and shapes
                differ from the first file's.

        """
        folder = _round(round_index)
        name = f"{folder}/silo-{silo}.safetensors"
        if name not in self._files:
            raise AttackError(f"capture {self.folder}: no update of silo {silo} in {folder}")
        facts, own = self._files[name], f"{folder}/sent-{silo}.safetensors"
        return ClientUpdate(
            before=self._load(own) if own in self._files else self.sent(round_index),
            after=self._load(name),
            learning_rate=float(facts.get("learning_rate", self.meta["learning_rate"])),
            samples=float(facts.get("samples", 1)),
            silo=silo,
            round=round_index,
        )

    def each(self, round_index: int | None = None) -> Iterator[ClientUpdate]:
        """The updates of one round, or of all, by round and silo; errors as of `load`."""
        for entry in self.entries():
            if round_index in (None, entry[0]):
                yield self.load(*entry)

    def updates(self, round_index: int | None = None) -> list[ClientUpdate]:
        """The updates of `each`, all in memory at once."""
        return list(self.each(round_index))

    def _write(self, name: str, content: bytes, **facts: float) -> None:
        """Write a file, whole or not at all, and then its line in the index."""
        path = self.folder / name
        entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), **facts}
        try:
            with replacing(path) as part:
                part.write_bytes(content)
            with (self.folder / INDEX).open("a") as index:
                index.write(json.dumps({"file": name, **entry}) + "\n")
        except OSError as error:
            raise AttackError(f"capture {path}: cannot be written: {error.strerror}") from None
        self._files[name] = entry

    def _read(self, name: str) -> bytes:
        path = self.folder / name
        if name not in self._files:
            raise AttackError(f"capture {path}: the index does not know it")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise AttackError(f"capture {path}: cannot be read: {error.strerror}") from None
        if hashlib.sha256(content).hexdigest() != self._files[name]["sha256"]:
            raise AttackError(f"capture {path}: it is not what was written: its SHA-256 differs")
        return content

    def _read_meta(self) -> dict[str, Any]:
        try:
            meta = json.loads(self._read(META))
        except ValueError:
            meta = None
        if not isinstance(meta, dict) or meta.get("schema") != SCHEMA:
            raise AttackError(f"{self.folder} is not a capture of this version ({SCHEMA})")
        rate = meta.get("learning_rate")
        if not isinstance(rate, (int, float)) or not 0 < rate < math.inf:
            raise AttackError(
                f"capture {self.folder / META}: learning_rate {rate!r} is not above 0"
            )
        return meta

    def _load(self, name: str) -> dict[str, Tensor]:
        try:
            state = tensors_of(self._read(name))
        except ValueError as error:
            raise AttackError(
                f"capture {self.folder / name}: this is no safetensors file: {error}"
            ) from None
        # types are not compared: FedML's averages and noise turn integers into floating point
        layout = {key: tuple(value.shape) for key, value in state.items()}
        # sealed words have other shapes than the first model, which is sent unsealed
        sealed = {value.dtype for value in state.values()} == {torch.int32}
        expected = self._layouts.setdefault(sealed, layout)
        # a job's own trainer may send fewer names than it received
        names = layout if "/silo-" in name else {*layout, *expected}
        for key in sorted(names):
            found, first = layout.get(key), expected.get(key)
            if found != first:
                raise AttackError(
                    f"capture {self.folder / name}: {key} is {_said(found)}, and was "
                    f"{_said(first)} in what was read first: it is of another job"
                )
        return state


def _entry(folder: Path, line: str, number: int) -> tuple[str, dict[str, Any]]:
    """Parse a line of the index; the line is untrusted."""
    where = f"capture {folder / INDEX}, line {number}"
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if not isinstance(entry, dict) or not line.endswith("\n"):
        raise AttackError(f"{where}: it was cut or changed")
    name, size, digest = (entry.pop(key, None) for key in ("file", "bytes", "sha256"))
    numbers = all(isinstance(value, (int, float)) for value in entry.values())
    if not (isinstance(name, str) and _NAME.fullmatch(name) and numbers):
        raise AttackError(f"{where}: {name!r} is no file of a capture")
    return name, {**entry, "bytes": size, "sha256": digest}


def _round(index: int) -> str:
    return f"round-{index:05d}"


def _said(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else f"of shape {shape}"


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor contiguous, in storage of its own, as safetensors needs; copied only if not."""
    seen: set[int] = set()
    plain = {}
    for name, tensor in state.items():
        one = tensor.detach().cpu().contiguous()
        storage = one.untyped_storage()
        if storage.nbytes() != one.nbytes or storage.data_ptr() in seen:
            one = one.clone()
        else:
            seen.add(storage.data_ptr())
        plain[name] = one
    return plain
