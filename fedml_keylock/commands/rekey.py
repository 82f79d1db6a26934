"""Changes a vault's passphrase, encrypts a vault or decrypts it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import VaultError
from ..locks.vault.cipher import Cipher
from ..locks.vault.file import Stored, write_state
from ..locks.vault.silo import claim_silo, files_of

__all__ = ["rekey_files"]


def rekey_files(
    folder: Path, silos: Iterable[int], old: Cipher | None, new: Cipher | None
) -> tuple[int, int]:
    """Rewrite every file of some silos, each whole or not at all.

    All files are read before the first is changed, so that a wrong passphrase changes nothing. A
    file that the new cipher opens is left as it is, so that a second run finishes an interrupted
    one. A cipher of None means not encrypted. Returns the numbers of changed and unchanged files.

    Raises:
        VaultError: neither cipher opens a file, it cannot be written, or a job is using it.

    Example:
        >>> import tempfile, torch
        >>> folder = Path(tempfile.mkdtemp())
        >>> path = folder / "silo-0.safetensors"
        >>> write_state(path, {"key": torch.ones(3)}, None, silo=0, layout="a1", round_index=7)
        >>> rekey_files(folder, [0], None, Cipher(b"correct horse"))
        (1, 0)
        >>> Stored.read(path).sealed
        True

    """
    files = []
    for silo in silos:
        claim_silo(folder, silo)
        files += files_of(folder, silo)
    waiting = [path for path in files if _opens_with_old(path, old, new)]
    for path in waiting:
        stored = Stored.read(path)
        write_state(
            path,
            stored.state(old),
            new,
            silo=stored.silo,
            layout=stored.layout,
            round_index=stored.round_index,
        )
    return len(waiting), len(files) - len(waiting)


def _opens_with_old(path: Path, old: Cipher | None, new: Cipher | None) -> bool:
    """Whether the old cipher opens a file; False if the new one does."""
    stored = Stored.read(path)
    problem = VaultError(f"vault {path}: it is not encrypted; encrypt it with --encrypt")
    for cipher, waits in ((new, False), (old, True)):
        if stored.sealed == (cipher is not None):
            try:
                stored.state(cipher)
            except VaultError as error:
                problem = error
            else:
                return waits
    raise problem
