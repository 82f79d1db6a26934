"""Restores silos' locked models from their vaults, for audits."""

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
    """A function that restores a silo's model from its vault and a state that the server sent.

    Args:
        model: the job's, unprotected.
        defense: the job's.
        folder: of the silos' vaults.

    Returns:
        The function. It raises VaultError if a vault is missing or another's, and ConfigError if it
        does not have the round.

    """
    layout = defense.describe(model).layout
    cipher = Cipher.from_environment() if defense.config.encrypt_vault else None

    def locked(state: Mapping[str, Tensor], silo: int, round_index: int | None) -> nn.Module:
        vault = Vault(folder, silo, layout, cipher)
        path = None if round_index is None else vault.history_path(round_index)
        if path is not None and vault.exists() and not path.exists():
            raise ConfigError(
                f"vault {folder}: it lacks the private state that round {round_index} of silo "
                f"{silo} began with: the job's YAML must say keylock: {{keep_history: true}}"
            )
        copy = deep_copy(model)
        defense.lock(copy, uniform=secret_uniform)  # the vault has the real values
        defense.load_private(copy, vault.load(path)[0])
        defense.load_round(copy, state, round_index=round_index, source=path or vault.path)
        return copy

    return locked


def silo_secrets(
    model: nn.Module, own_lock: OwnLock, updates: Sequence[ClientUpdate]
) -> dict[str, Tensor]:
    """For the key-knowing upper bound: each silo's secret variables when its round began.

    Args:
        model: the job's, unprotected.
        own_lock: see `own_locks`.
        updates: u of them.

    Returns:
        Name to ``(u, *shape)``.

    Raises:
        VaultError: a vault is missing, or another's.

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
    """The job's test accuracy under fresh locks that are not a silo's.

    A fresh lock has seen no data: each gets a silo's statistics, so that only its key is wrong.

    Args:
        model: the job's, unprotected, with the final weights.
        defense: the job's.
        own_lock: see `own_locks`.
        data: to test with.
        count: how many fresh locks.
        silos: how many silos to take statistics from, in turn.
        uniform: see `lock_model`.

    Raises:
        VaultError: a vault is missing, or another's.

    """
    found = []
    for index in range(count):
        own = partial(own_lock, model.state_dict(), index % silos, None)
        found.append(share_correct(defense.as_outsider(model, own, uniform), data))
    return found
