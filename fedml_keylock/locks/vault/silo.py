"""Keeps one silo's private state in a folder, and makes sure that one process writes it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...disk import check_folder, claim, make_folder, release, remove_leftovers
from ...errors import VaultError
from .cipher import Cipher
from .file import Stored, write_state

__all__ = ["Vault", "claim_silo", "files_of", "history_of", "silo_path", "silos_in"]


@dataclass(frozen=True)
class Vault:
    """One silo's private state in a folder.

    Attributes:
        folder: of the files; created on the first write, for its owner only.
        silo: index of the silo.
        layout: digest of the public layout that the state belongs to; a vault of another model or
            another lock is refused.
        cipher: encrypts and decrypts the files; None leaves them plain.

    Example:
        >>> import tempfile
        >>> import torch
        >>> vault = Vault(Path(tempfile.mkdtemp()), silo=0, layout="a1")
        >>> vault.save({"key": torch.ones(2)}, round_index=3)
        >>> vault.load()
        ({'key': tensor([1., 1.])}, 3)

    """

    folder: Path
    silo: int
    layout: str
    cipher: Cipher | None = None

    @property
    def path(self) -> Path:
        """The silo's file."""
        return silo_path(self.folder, self.silo)

    def history_path(self, round_index: int) -> Path:
        """The file for the private state that a round began with."""
        return self.folder / f"silo-{self.silo}" / f"round-{round_index:05d}.safetensors"

    def exists(self) -> bool:
        """Whether the silo has saved a state."""
        # a broken link counts too: loading it says what is wrong
        return os.path.lexists(self.path)

    def claim(self, *, wait: float = 0.0) -> None:
        """Claim this silo's vault, so that no other process writes it, until `release` or exit.

        This removes files that a killed process left half written. Saving claims by itself; a job
        claims before it trains, so that it trains nothing that cannot be saved.

        Args:
            wait: how many seconds to wait for another process to release it.

        Raises:
            VaultError: another process holds it, or the folder cannot be written.

        """
        claim_silo(self.folder, self.silo, wait=wait)

    def release(self) -> None:
        """Let another process write this silo's vault. Does nothing without a claim."""
        release(_lock_file(self.folder, self.silo))

    def save(self, state: Mapping[str, Tensor], *, round_index: int) -> None:
        """Write private state, whole or not at all, readable by its owner only.

        Args:
            state: of the silo's lock, name to tensor.
            round_index: the next round for this state.

        Raises:
            VaultError: the file cannot be written, or another process holds this vault; the older
                state is untouched.

        """
        self._write(self.path, state, round_index)

    def keep(self, state: Mapping[str, Tensor], *, round_index: int) -> None:
        """Save the private state that a round begins with, beside the current one.

        Raises:
            VaultError: the file cannot be written, or another process holds this vault.

        """
        self._write(self.history_path(round_index), state, round_index)

    def load(self, path: Path | None = None) -> tuple[dict[str, Tensor], int]:
        """Read the silo's private state.

        Args:
            path: of a file that `keep` wrote; None for the current state.

        Returns:
            The state, and its next round.

        Raises:
            VaultError: the file is missing, damaged, readable by others, another user's, encrypted
                under another passphrase, or of another silo or another job's layout.

        """
        stored = Stored.read(path or self.path)
        for name, value in {"silo": str(self.silo), "layout": self.layout}.items():
            if stored.header.get(name) != value:
                raise VaultError(
                    f"vault {stored.path}: its {name} is {stored.header.get(name)!r}, this job has "
                    f"{value!r}; move it away, or name another folder in keylock.vault"
                )
        return stored.state(self.cipher), stored.round_index

    def _write(self, path: Path, state: Mapping[str, Tensor], round_index: int) -> None:
        self.claim()
        make_folder(path.parent)
        write_state(
            path,
            state,
            self.cipher,
            silo=self.silo,
            layout=self.layout,
            round_index=round_index,
        )


def claim_silo(folder: Path, silo: int, *, wait: float = 0.0) -> None:
    """Claim a silo's files for this process, and remove what a killed process left half written.

    Raises:
        VaultError: another process holds them, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> claim_silo(folder, 2)
        >>> [path.name for path in folder.iterdir()]
        ['.silo-2.lock']

    """
    make_folder(folder)
    if claim(_lock_file(folder, silo), what=f"vault {folder}: silo {silo}", wait=wait):
        remove_leftovers(folder, f"silo-{silo}.*")
        remove_leftovers(folder / f"silo-{silo}", "*")


def _lock_file(folder: Path, silo: int) -> Path:
    return folder / f".silo-{silo}.lock"


def silo_path(folder: Path, silo: int) -> Path:
    """The file with a silo's current private state.

    Example:
        >>> silo_path(Path("vault"), 2).name
        'silo-2.safetensors'

    """
    return folder / f"silo-{silo}.safetensors"


def silos_in(folder: Path) -> list[int]:
    """The silos that have files in a folder.

    Raises:
        VaultError: the path is not a folder, cannot be read, or others may use it.

    Example:
        >>> import tempfile
        >>> silos_in(Path(tempfile.mkdtemp()))
        []

    """
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        raise VaultError(
            f"vault {folder}: no such folder; run it in the job's folder, or name the vault's"
        ) from None
    except NotADirectoryError:
        raise VaultError(f"vault {folder}: it is not a folder; name the vault's") from None
    except OSError as error:
        raise VaultError(f"vault {folder}: {error.strerror}") from None
    matches = (re.fullmatch(r"silo-(\d+)(\..*\.safetensors|\.safetensors)?", n) for n in names)
    found = sorted({int(match[1]) for match in matches if match})
    if found:  # without files it is not a vault, and may belong to anybody
        check_folder(folder)
    return found


def history_of(folder: Path, silo: int) -> list[Path]:
    """The private states that a silo's rounds began with, as files, oldest first."""
    return sorted((folder / f"silo-{silo}").glob("round-*.safetensors"))


def files_of(folder: Path, silo: int) -> list[Path]:
    """Every file with a silo's private state: past ones, those set aside, and the current one."""
    current = silo_path(folder, silo)
    aside = sorted(folder.glob(f"silo-{silo}.*.safetensors"))
    there = [current] if os.path.lexists(current) else []
    return [*history_of(folder, silo), *aside, *there]
