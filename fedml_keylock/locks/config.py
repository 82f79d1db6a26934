"""The settings of a lock: the `keylock:` section of a job's YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ..errors import ConfigError
from ..privacy.noise_config import NoiseConfig
from ..settings import Positive, Settings

__all__ = ["KeyLockConfig"]

LockName = Literal["sealed", "rotated", "paper"]
COMPARED = ("geo_median", "krum", "multikrum", "rfa")
"""FedML's defenses that use only the distances between updates, which a common rotation keeps."""

BOTH = "paper+sealed"
SEALED, PAPER = ("sealed", BOTH), ("paper", BOTH)
FIELDS_OF: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("group_key", "link_key"), (*SEALED, "rotated")),
    **dict.fromkeys(("colluders", "roster", "identity", "first_model", "scale"), SEALED),
    **dict.fromkeys(("save_model", "tell_accuracy", "tell_samples"), SEALED),
    # under both locks save_model writes the public part, for fedml-keylock export to complete
    "checkpoint": ("sealed",),
    "noise": ("sealed",),
    "robust_aggregation": ("rotated", "paper"),
    **dict.fromkeys(("layers", "key_length", "activation", "chained"), PAPER),
    "share_norm_statistics": PAPER,
}
"""Fields that apply to some locks only, with those locks."""
KINDS = ("sealed", "rotated", "paper", BOTH)

RENAMED: Mapping[tuple[str, str | None], str] = {
    ("targets", None): "layers",
    ("then", None): "robust_aggregation",
    ("module", "whole"): "lock: sealed, the default",
    ("mask", None): "lock: sealed, the default, which has no such mask",
    ("module", "affine"): "lock: paper",
    ("preset", "paper"): "lock: paper",
}
"""Fields of earlier versions, some with one value only, and what replaces them."""
RETIRED = {field for field, _ in RENAMED} | {"form", "mixed", "rotate_every"}
"""Fields of earlier versions. Those without a replacement are in docs/what-we-tried.md."""


class KeyLockConfig(Settings):
    """Configuration of the key-lock defense. Every field has a default that works.

    Example:
        >>> KeyLockConfig().lock
        'sealed'
        >>> KeyLockConfig(lock="paper", layers="all").key_length
        1024

    """

    section: ClassVar[str] = "keylock"

    lock: LockName | tuple[LockName, ...] = "sealed"
    """sealed: exact secure aggregation: the server adds up words that only silos can open. rotated:
    a secret orthogonal matrix rotates the state before it is sent, for `robust_aggregation`. paper:
    the published key-lock module, gamma and beta on layers. [paper, sealed]: the published module,
    and its updates sealed."""
    group_key: Path | None = None
    """For sealed and rotated: an owner-only file with a secret of 32 bytes or more that all silos
    share and the server does not have. None: silos agree on keys themselves, in MPI jobs only."""
    link_key: Path | None = None
    """For sealed and rotated, over gRPC: an owner-only file with a second secret, which server and
    silos share. Each message carries a tag under it, so that changes on the network are noticed."""
    colluders: int | None = Field(default=None, ge=0, strict=True)
    """For sealed: how many silos may collude with the server. None: all but two, of up to 64 silos;
    31 of more."""
    roster: Path | None = None
    """For sealed: a file with the silos' public keys, so that nobody answers in a silo's name; see
    `fedml-keylock roster`."""
    identity: str | None = None
    """For sealed, with roster: the silo's own private key, an owner-only file; {rank} in the path
    stands for the silo's rank."""
    first_model: str | None = None
    """For sealed: refuse any other first model than this: own (what the silo builds itself), the
    digest that the log gives, or a .safetensors file."""
    scale: Positive | None = None
    """For sealed: the largest number in tensors that silos send and the first model does not have,
    such as a gradient under a name of its own."""
    noise: NoiseConfig | None = None
    """For sealed: clip what silos send and add noise to it under the seal, for differential
    privacy; its fields are those of `NoiseConfig`."""
    checkpoint: Path | None = None
    """For sealed: a .safetensors file that the server writes after each round. It is sealed;
    `fedml-keylock export` opens it with any silo's vault."""
    save_model: Path | None = None
    """For sealed: a folder in which each silo writes the final model, in the clear, as
    silo-N.safetensors."""
    tell_accuracy: bool = Field(default=False, strict=True)
    """For sealed: whether silos report the accuracy of the models that they receive (own_accuracy)
    to the server's log. Otherwise it goes to silo-N.log in the vault's folder: a server that chose
    the model could read class shares from it."""
    tell_samples: bool = Field(default=False, strict=True)
    """For sealed: whether silos tell the server how many samples they have. FedML's server does not
    need it: silos weight their updates themselves."""
    layers: Literal["first", "all"] | tuple[str, ...] = "first"
    """For paper: the first convolution, every convolution, or globs of module names."""
    key_length: int = Field(default=1024, ge=1, le=1_048_576, strict=True)
    """For paper: K, the length of the key."""
    activation: Literal["relu", "sigmoid"] = "relu"
    """For paper: the activation on gamma and beta; the paper trains with relu, and tests leakage
    with sigmoid."""
    chained: bool = Field(default=False, strict=True)
    """For paper: whether a layer's gamma and beta are the next layer's keys, as published for all
    layers."""
    share_norm_statistics: bool = Field(default=False, strict=True)
    """For paper: whether silos share the BatchNorm running statistics of locked layers, which
    reveal something of the batch."""
    robust_aggregation: str | None = None
    """FedML's own defense that its server runs on the locked updates, such as krum or rfa; its
    settings stay in defense_args, as in FedML. None: only the average."""
    own_accuracy: bool = Field(default=True, strict=True)
    """Whether a silo tests each model that it receives under its own lock, whenever FedML's server
    tests. Under sealed the results go to silo-N.log in the vault's folder (see tell_accuracy),
    under the other locks to FedML's log, mlops.log and wandb."""
    log_training: bool = Field(default=False, strict=True)
    """Whether a silo's logs below errors, and the text of its errors, leave it during training.
    FedML's trainers log every batch's loss, which reveals something of the batch, and mpiexec
    carries it to the server's host. Otherwise errors go to silo-N.log in the vault's folder."""
    vault: Path = Path("keylock_vault")
    """Folder with each silo's private state, one owner-only file a silo."""
    keep_history: bool = Field(default=False, strict=True)
    """Keep each round's initial private state, for an audit with a key-knowing upper bound."""
    encrypt_vault: bool = Field(default=False, strict=True)
    """Encrypt the vault under the passphrase in FEDML_KEYLOCK_PASSPHRASE, or in the owner-only file
    that FEDML_KEYLOCK_PASSPHRASE_FILE names."""

    @property
    def locks(self) -> tuple[str, ...]:
        """The names of the locks, from the model outwards.

        Example:
            >>> KeyLockConfig(lock=["paper", "sealed"]).locks
            ('paper', 'sealed')

        """
        return (self.lock,) if isinstance(self.lock, str) else self.lock

    @property
    def kind(self) -> str:
        """The locks in one word.

        Example:
            >>> KeyLockConfig(lock=["paper", "sealed"]).kind
            'paper+sealed'

        """
        return "+".join(self.locks)

    @model_validator(mode="before")
    @classmethod
    def _current_names(cls, fields: Any) -> Any:
        for name, value in fields.items() if isinstance(fields, dict) else ():
            if name not in RETIRED:
                continue
            new = RENAMED.get((name, None)) or RENAMED.get((name, str(value)))
            raise ConfigError(
                f"keylock.{name}: a setting of an earlier version; use {new}"
                if new
                else f"keylock.{name}: {value!r} belongs to locks that were removed "
                "(docs/what-we-tried.md says why); leave it out, or use lock: sealed or "
                "lock: paper"
            )
        return fields

    @model_validator(mode="after")
    def _goes_together(self) -> KeyLockConfig:
        kind = self.kind
        if kind not in KINDS:
            raise ConfigError(
                f"keylock.lock: {list(self.locks)} do not go together; use one of sealed, rotated "
                "and paper, or [paper, sealed]"
            )
        for name, locks in FIELDS_OF.items():
            value = getattr(self, name)
            if value == type(self).model_fields[name].default or kind in locks:
                continue
            alone = " and ".join(lock for lock in locks if lock != BOTH)
            raise ConfigError(
                f"keylock.{name}: {_listed(value)!r} is of lock: {alone}, and lock is {kind}; "
                f"leave it out, or set lock: {locks[0]}"
            )
        then = self.robust_aggregation
        if kind == "rotated" and then not in (None, *COMPARED):
            raise ConfigError(
                f"keylock.robust_aggregation: {then!r} does not run under lock: rotated, whose "
                f"states can only be compared with one another; use one of {', '.join(COMPARED)}"
            )
        if self.noise is not None:
            self._beside_noise()
        if (self.roster is None) != (self.identity is None):
            raise ConfigError(
                "keylock.roster: needs identity, the silo's own private key: give both "
                "(fedml-keylock roster init makes one)"
            )
        return self

    def _beside_noise(self) -> None:
        if self.colluders is None:
            raise ConfigError(
                "keylock.colluders: needed with noise: how many silos may collude with the "
                "server, as they can subtract their own noise; 0 for none"
            )
        for name in ("tell_samples", "tell_accuracy", "log_training"):
            if getattr(self, name):
                raise ConfigError(
                    f"keylock.{name}: it would tell the server what noise does not cover; leave "
                    "it out with noise"
                )

    @field_validator("first_model")
    @classmethod
    def _some_model(cls, value: str | None) -> str | None:
        if value in (None, "own") or re.fullmatch(r"[0-9a-fA-F]{64}|.+\.safetensors", str(value)):
            return value
        raise ValueError("use own, a digest of 64 hexadecimal digits, or a .safetensors file")

    @field_validator("checkpoint")
    @classmethod
    def _some_file(cls, value: Path | None) -> Path | None:
        if value is not None and value.suffix != ".safetensors":
            raise ValueError("use the name of a .safetensors file")
        return value

    @field_validator("layers", mode="before")
    @classmethod
    def _some_layers(cls, value: Any) -> Any:
        known = "use first, all, or a list of module-name globs"
        if isinstance(value, str) and value not in ("first", "all"):
            raise ValueError(f"{known} such as ['layer1.*']")
        if isinstance(value, (list, tuple)) and not value:
            raise ValueError(known)
        return value


def _listed(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.model_dump(exclude_defaults=True)
    return str(value) if isinstance(value, Path) else value
