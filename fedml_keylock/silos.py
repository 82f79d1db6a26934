"""What the silos of a keylock job have: their own locks, from their vaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import ConfigError
from .evaluation.audit import OwnLock, share_correct
from .inversion import PublicData
from .locks import Lock, Vault, secret_variables
from .locks.entropy import Uniform, secret_uniform
from .locks.vault import Cipher
from .tensors import deep_copy
from .types import ClientUpdate

__all__ = ["fresh_lock_accuracy", "own_locks", "silo_secrets"]


def own_locks(model: nn.Module, defense: Lock, folder: Path) -> OwnLock:
    """What the silos' vaults give: models as silos had them, of what the server sent.

    Args:
        model: the job's, unprotected.
        defense: the job's.
        folder: the silos' vaults.

    Returns:
        A function that raises VaultError where a vault is missing or another's, and ConfigError
        where it does not have the round.

    """
    layout = defense.describe(model).layout
    cipher = Cipher.from_environment() if defense.config.encrypt_vault else None

    def locked(state: Mapping[str, Tensor], silo: int, round_index: int | None) -> nn.Module:
        vault = Vault(folder, silo, layout, cipher)
        path = None if round_index is None else vault.history_path(round_index)
        if path is not None and vault.exists() and not path.exists():
            raise ConfigError(
                f"vault {folder}: it has not what round {round_index} of silo {silo} began with: "
                "the job's YAML must say keylock: {keep_history: true}"
            )
        copy = deep_copy(model)
        defense.lock(copy, uniform=secret_uniform)  # the vault has the values
        defense.load_private(copy, vault.load(path)[0])
        defense.load_round(copy, state, round_index=round_index, source=path or vault.path)
        return copy

    return locked


def silo_secrets(
    model: nn.Module, own_lock: OwnLock, updates: Sequence[ClientUpdate]
) -> dict[str, Tensor]:
    """For the oracle: what each silo's lock came to when the round of its update began.

    Args:
        model: the job's, unprotected.
        own_lock: of the silos' vaults.
        updates: u of them.

    Returns:
        Name to ``(u, *shape)``.

    Raises:
        VaultError: a vault is missing, or is another's.

    """
    plain = model.state_dict()
    states = [secret_variables(own_lock(plain, update.silo, update.round)) for update in updates]
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def fresh_lock_accuracy(
    model: nn.Module,
    defense: Lock,
    own_lock: OwnLock,
    data: PublicData,
    *,
    count: int,
    silos: int,
    uniform: Uniform | None = None,
) -> list[float]:
    """With what share of test images right a job's model ends under locks that are not a silo's.

    A new lock has seen no data: each gets a silo's statistics, so that it fails for its key alone.

    Args:
        model: the job's, unprotected, with the weights that training ended with.
        defense: the job's.
        own_lock: of the silos' vaults.
        data: to test with.
        count: how many new locks.
        silos: how many there are to take statistics from, each in turn.
        uniform: see `lock_model`.

    Raises:
        VaultError: a vault is missing, or is another's.

    """
    found = []
    for index in range(count):
        own = partial(own_lock, model.state_dict(), index % silos, None)
        found.append(share_correct(defense.as_outsider(model, own, uniform), data))
    return found
