"""Rebuilds a silo's model: the global model under the silo's own lock."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import ConfigError, VaultError
from ..locks import Lock
from ..locks.entropy import secret_uniform
from ..locks.vault.cipher import Cipher
from ..locks.vault.file import Stored
from ..tensors import PREFIXES, tensors_of
from .job import check_owner

__all__ = ["lock_as_silo", "read_checkpoint", "unwrapped"]

INSIDE = ("state_dict", "model_state_dict", "model")
"""Keys under which checkpoints hold a model's state_dict."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a model's state from a file: safetensors, or a state_dict by torch.save.

    A checkpoint that contains the state_dict is read too. The bytes decide the format, not the
    name. Nothing in the file is executed.

    Raises:
        ConfigError: the file cannot be read, or holds something else.

    Example:
        >>> torch.save({"epoch": 3, "state_dict": nn.Linear(3, 2).state_dict()}, "global.pt")
        >>> list(read_checkpoint(Path("global.pt")))
        ['weight', 'bias']

    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or 'cannot be read'}") from None
    if head[8:] == b"{" or path.suffix == ".safetensors":  # safetensors: a length, then JSON
        try:
            return tensors_of(path.read_bytes())
        except ValueError as error:
            raise ConfigError(f"{path}: damaged ({error})") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # for foreign files torch raises errors of many kinds
        raise ConfigError(
            f"{path}: not safetensors, and not a state_dict that torch.load takes with "
            "weights_only=True; save the model with torch.save(model.state_dict(), path)"
        ) from None
    if isinstance(state, Mapping):
        inside = [state[name] for name in INSIDE if isinstance(state.get(name), Mapping)]
        state = inside[0] if inside else state
    if not isinstance(state, Mapping) or not state:
        raise ConfigError(f"{path}: holds a {type(state).__name__}, not a model's state_dict")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ConfigError(f"{path}: not a model's state_dict: its {name!r} is not a tensor")
    return dict(state)


def unwrapped(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state without the prefix that DataParallel or torch.compile adds to every name.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> list(unwrapped(nn.DataParallel(layer).state_dict(), layer))
        ['weight', 'bias']

    """
    bare = dict(state)
    if not bare.keys() & model.state_dict().keys():
        for prefix in PREFIXES * 2:  # either may be the outer one
            if all(name.startswith(prefix) for name in bare):
                bare = {name.removeprefix(prefix): tensor for name, tensor in bare.items()}
    return bare


def lock_as_silo(
    model: nn.Module,
    defense: Lock,
    stored: Stored | None,
    cipher: Cipher | None,
    *,
    silo: int,
    state: Mapping[str, Tensor],
    source: Path,
    round_index: int | None = None,
) -> None:
    """Turn a job's model into a silo's: the global model under the silo's lock.

    Args:
        model: the job's model, not locked; changed in place.
        defense: the job's defense.
        stored: the silo's file in the vault; None if none is needed.
        cipher: the vault's cipher; None if the vault is not encrypted.
        silo: index of the silo.
        state: the global model's state.
        source: origin of the state, for messages.
        round_index: round whose average the state is, from 0; None for the vault's last.

    Raises:
        ConfigError: the state is not of this job's global model, or not of that round.
        LockError: the lock does not fit the model.
        VaultError: the vault is another silo's or another job's, or cannot be read.

    """
    agreed = defense.describe(model)
    defense.check_fit(model, state, agreed.constants, source)
    if stored is not None:
        check_owner(stored, silo, agreed.layout, hint=": give the job's own --model and --config")
    defense.lock(model, uniform=secret_uniform)  # the vault holds the values
    if stored is not None:
        private = stored.state(cipher)
        try:
            defense.load_private(model, private)
        except VaultError as error:
            raise VaultError(
                f"vault {stored.path}: {error}: give the job's own --model and --config"
            ) from None
    defense.load_public(model, state, round_index=round_index, source=source)
    model.eval()
