"""Private state on disk, one owner-only file a silo: the only way that it leaves the process."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..errors import VaultError
from .state import load_private_state_dict, private_state_dict

__all__ = ["Vault"]

SCHEMA = "fedml-keylock/vault/1"


@dataclass(frozen=True)
class Vault:
    """One silo's private state in a folder.

    Attributes:
        folder: where the files are; made when first written, for its owner only.
        silo: index of the silo.
        layout: digest of the public layout that the state belongs to; a vault of another model or
            another lock is refused.

    Example:
        >>> import tempfile
        >>> from fedml_keylock.keylock import lock_model
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 3))
        >>> info = lock_model(model)
        >>> vault = Vault(Path(tempfile.mkdtemp()), silo=0, layout="a1")
        >>> vault.save(model, round_index=3)
        >>> vault.load(model)
        3

    """

    folder: Path
    silo: int
    layout: str

    @property
    def path(self) -> Path:
        """The silo's file."""
        return self.folder / f"silo-{self.silo}.safetensors"

    def history_path(self, round_index: int) -> Path:
        """Where the private state that a round began with is kept, when it is."""
        return self.folder / f"silo-{self.silo}" / f"round-{round_index:05d}.safetensors"

    def exists(self) -> bool:
        """Whether the silo has saved before."""
        return self.path.exists()

    def save(self, model: nn.Module, *, round_index: int) -> None:
        """Write a locked model's private state: whole or not at all, readable by its owner only.

        Args:
            model: locked.
            round_index: the first round that has not been trained with this state.

        Raises:
            VaultError: the file cannot be written; what was there before is untouched.

        """
        self._write(self.path, model, round_index)

    def keep(self, model: nn.Module, *, round_index: int) -> None:
        """Keep the private state that a round begins with beside the current one.

        Raises:
            VaultError: the file cannot be written.

        """
        self._write(self.history_path(round_index), model, round_index)

    def load(self, model: nn.Module, path: Path | None = None) -> int:
        """Put the silo's private state into a model that is locked in the same way.

        Returns:
            The round that the state is to be trained in next.

        Raises:
            VaultError: missing, damaged, readable by others, or of another silo, model or lock.

        """
        path = path or self.path
        try:
            with path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        except OSError as error:
            raise VaultError(f"vault {path}: {error.strerror}") from None
        if mode & 0o077:
            raise VaultError(
                f"vault {path}: its mode is {mode:04o}, so that others may read it; "
                f"it must be 0600 (chmod 600 {path})"
            )
        try:
            with safe_open(path, framework="pt") as file:
                meta = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        except (SafetensorError, OSError) as error:
            raise VaultError(f"vault {path}: damaged ({error})") from None
        expected = {"schema": SCHEMA, "silo": str(self.silo), "layout": self.layout}
        for field, value in expected.items():
            if meta.get(field) != value:
                raise VaultError(
                    f"vault {path}: its {field} is {meta.get(field)!r}, this job has {value!r}; "
                    "move it away, or name another folder in keylock.vault"
                )
        if meta.get("sha256") != _digest(state):
            raise VaultError(f"vault {path}: damaged (its checksum does not fit its content)")
        try:
            round_index = int(meta["round"])
        except (KeyError, ValueError):
            raise VaultError(f"vault {path}: damaged (it names no round)") from None
        load_private_state_dict(model, state)
        return round_index

    def _write(self, path: Path, model: nn.Module, round_index: int) -> None:
        meta = {
            "schema": SCHEMA,
            "silo": str(self.silo),
            "layout": self.layout,
            "round": str(round_index),
        }
        state = private_state_dict(model)
        content = save(state, metadata={**meta, "sha256": _digest(state)})
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.parent.mkdir(exist_ok=True, mode=0o700)
            # mkstemp opens with mode 0600
            descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(name, path)
            except BaseException:
                os.unlink(name)
                raise
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise VaultError(f"vault {path}: cannot be written: {error.strerror}") from None


def _digest(state: Mapping[str, Tensor]) -> str:
    """Checksum of names, shapes and numbers: against accidents, not against an attacker."""
    digest = sha256()
    for name in sorted(state):
        digest.update(f"{name} {tuple(state[name].shape)}\n".encode())
        digest.update(state[name].flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
