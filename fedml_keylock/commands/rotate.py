"""Give a silo a fresh lock in the place of the one in its vault."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from ..errors import VaultError
from ..locks import Lock
from ..locks.vault.cipher import Cipher
from ..locks.vault.disk import open_private, write_private
from ..locks.vault.file import Stored, write_state
from ..locks.vault.silo import claim_silo, history_of, silo_path
from .job import check_owner

__all__ = ["rotate_silo"]


def rotate_silo(
    folder: Path,
    silo: int,
    model: nn.Module,
    defense: Lock,
    cipher: Cipher | None,
    *,
    keep_old: bool = False,
) -> Path | None:
    """Replace a silo's lock by a fresh one. Its normalisation statistics and its round stay.

    Args:
        folder: of the vault.
        silo: index of the silo.
        model: as the job makes it, not locked; it is locked here.
        defense: the job's.
        cipher: of the vault, None when it is plain.
        keep_old: keep the old lock's file under another name, and the history; otherwise both are
            deleted, after the new lock is on disk.

    Returns:
        Where the old lock is kept, if it is.

    Raises:
        LockError: the model cannot be locked so.
        VaultError: the vault cannot be read or written, belongs to another model or other locked
            layers, or a job is using it.

    Example:
        >>> import tempfile
        >>> from ..builtin import keylock
        >>> folder, model = Path(tempfile.mkdtemp()), nn.Sequential(nn.Conv2d(1, 6, 3))
        >>> job = keylock({"lock": "paper", "vault": folder})
        >>> done = job.protect(model, silo=2, agreement=job.describe(model))
        >>> before = job.private_state(model)
        >>> rotate_silo(folder, 2, nn.Sequential(nn.Conv2d(1, 6, 3)), job, None)
        >>> after = Stored.read(folder / "silo-2.safetensors").state(None)
        >>> all(tensor.equal(before[name]) for name, tensor in after.items())
        False

    """
    layout = defense.describe(model).layout
    defense.lock(model)
    claim_silo(folder, silo)
    path = silo_path(folder, silo)
    stored = Stored.read(path)
    check_owner(stored, silo, layout)
    old = stored.state(cipher)
    defense.load_private(model, old)  # refuses what another lock than the settings' has left
    defense.redraw(model)
    aside = folder / f"silo-{silo}.rotated-{stored.round_index}.safetensors" if keep_old else None
    if aside is not None:
        _set_aside(stored.content, aside)
    write_state(
        path,
        defense.private_state(model),
        cipher,
        silo=silo,
        layout=layout,
        round_index=stored.round_index,
    )
    if not keep_old:
        for past in history_of(folder, silo):
            _delete(past)
    return aside


def _set_aside(content: bytes, aside: Path) -> None:
    if os.path.lexists(aside):
        with open_private(aside) as file:
            if file.read() != content:  # an interrupted run leaves the same, and is gone on with
                raise VaultError(f"vault {aside}: it is there already; move it away")
    else:
        write_private(aside, content)


def _delete(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        raise VaultError(f"vault {path}: cannot be deleted: {error.strerror}") from None
