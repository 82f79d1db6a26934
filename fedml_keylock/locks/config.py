"""What a lock is configured by: the `keylock:` section of a job's YAML."""

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
"""FedML's own defenses that use nothing of updates but their distances from one another, which one
rotation of all of them leaves as they are."""

BOTH = "paper+sealed"
SEALED, PAPER = ("sealed", BOTH), ("paper", BOTH)
FIELDS_OF: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("group_key", "link_key"), (*SEALED, "rotated")),
    **dict.fromkeys(("colluders", "roster", "identity", "first_model", "scale"), SEALED),
    **dict.fromkeys(("save_model", "tell_accuracy", "tell_samples"), SEALED),
    # under both locks save_model writes what fedml-keylock export puts together with a silo's own
    "checkpoint": ("sealed",),
    "noise": ("sealed",),
    "robust_aggregation": ("rotated", "paper"),
    **dict.fromkeys(("layers", "key_length", "activation", "chained"), PAPER),
    "share_norm_statistics": PAPER,
}
"""Fields that say something of some locks only, and which those are."""
KINDS = ("sealed", "rotated", "paper", BOTH)

RENAMED: Mapping[tuple[str, str | None], str] = {
    ("targets", None): "layers",
    ("then", None): "robust_aggregation",
    ("module", "whole"): "lock: sealed, the default",
    ("mask", None): "lock: sealed, the default, which has no such mask",
    ("module", "affine"): "lock: paper",
    ("preset", "paper"): "lock: paper",
}
"""Fields of earlier versions, some with one value only, and what to write in their place."""
RETIRED = {field for field, _ in RENAMED} | {"form", "mixed", "rotate_every"}
"""Fields of earlier versions. What is not renamed is gone: docs/what-we-tried.md says why."""


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
    """sealed: exact secure aggregation: what leaves a silo are words that the server adds up and
    only silos open. rotated: the state is rotated by a secret orthogonal matrix before it is sent,
    for `robust_aggregation`. paper: the published key-lock module, gamma and beta on layers. Or
    [paper, sealed]: the published module, and what leaves it sealed."""
    group_key: Path | None = None
    """Of sealed and rotated: an owner-only file with a secret of 32 bytes or more that all silos
    have and the server has not. None: silos agree by themselves, which they can in an MPI job."""
    link_key: Path | None = None
    """Of sealed and rotated, over gRPC: an owner-only file with another secret, which server and
    silos have: each message carries a tag under it, against who changes them on the way."""
    colluders: int | None = Field(default=None, ge=0, strict=True)
    """Of sealed: how many silos may collude with the server. None: all but two, of up to 64 silos;
    31 of more."""
    roster: Path | None = None
    """Of sealed: a file with the silos' public keys, against who answers in a silo's name; see
    `fedml-keylock roster`."""
    identity: str | None = None
    """Of sealed, beside roster: the silo's own private key, an owner-only file; {rank} in it stands
    for the silo's rank."""
    first_model: str | None = None
    """Of sealed: refuse a first model that is not this one: own (what the silo builds by itself),
    the digest that the log gives, or a .safetensors file."""
    scale: Positive | None = None
    """Of sealed: the largest number in tensors that silos send and the first model does not have,
    such as a gradient under a name of its own."""
    noise: NoiseConfig | None = None
    """Of sealed: clip what silos send and add noise to it under the seal, for differential
    privacy; its fields are those of `NoiseConfig`."""
    checkpoint: Path | None = None
    """Of sealed: a .safetensors file that the server writes after each round. It is sealed;
    `fedml-keylock export` opens it with any silo's vault."""
    save_model: Path | None = None
    """Of sealed: a folder in which each silo writes the final model, open, as
    silo-N.safetensors."""
    tell_accuracy: bool = Field(default=False, strict=True)
    """Of sealed: whether the server's log is told what silos measure of the models that they are
    given (own_accuracy). Otherwise it goes to silo-N.log in the vault's folder: a server that chose
    the model would read class shares from it."""
    tell_samples: bool = Field(default=False, strict=True)
    """Of sealed: whether the server is told how many samples each silo has. FedML's server has no
    use for it: silos weigh their updates themselves."""
    layers: Literal["first", "all"] | tuple[str, ...] = "first"
    """Of paper: the first convolution, every convolution, or globs of module names."""
    key_length: int = Field(default=1024, ge=1, le=1_048_576, strict=True)
    """Of paper: K, how many numbers the key has."""
    activation: Literal["relu", "sigmoid"] = "relu"
    """Of paper: applied to gamma and beta; relu when the paper trains, sigmoid in its leak
    tests."""
    chained: bool = Field(default=False, strict=True)
    """Of paper: whether a layer's gamma and beta are the next layer's keys, as published for all
    layers."""
    share_norm_statistics: bool = Field(default=False, strict=True)
    """Of paper: whether BatchNorm running statistics of locked layers are shared (they tell of the
    batch)."""
    robust_aggregation: str | None = None
    """FedML's own defense that its server runs on the locked updates, such as krum or rfa; its
    settings stand in defense_args as FedML has them. None: nothing but the average."""
    own_accuracy: bool = Field(default=True, strict=True)
    """Whether a silo tests each model that it is given under its own lock, whenever FedML's server
    tests; it tells FedML's log, mlops.log and wandb."""
    log_training: bool = Field(default=False, strict=True)
    """Whether a silo lets out what is logged while it trains, up to warnings, and what errors say:
    FedML's trainers log every batch's loss, which tells of the batch, and mpiexec carries it to the
    server's host. Otherwise errors are written to silo-N.log in the vault's folder."""
    vault: Path = Path("keylock_vault")
    """Folder with each silo's private state, one owner-only file a silo."""
    keep_history: bool = Field(default=False, strict=True)
    """Keep the private state that each round began with, for an audit with an oracle."""
    encrypt_vault: bool = Field(default=False, strict=True)
    """Encrypt the vault under the passphrase in FEDML_KEYLOCK_PASSPHRASE, or in the owner-only file
    that FEDML_KEYLOCK_PASSPHRASE_FILE names."""

    @property
    def locks(self) -> tuple[str, ...]:
        """The names of its locks, from the model outwards.

        Example:
            >>> KeyLockConfig(lock=["paper", "sealed"]).locks
            ('paper', 'sealed')

        """
        return (self.lock,) if isinstance(self.lock, str) else self.lock

    @property
    def kind(self) -> str:
        """Its locks in one word.

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
                f"keylock.{name}: it is of an earlier version; use {new}"
                if new
                else f"keylock.{name}: {value!r} is of locks that are gone (docs/what-we-tried.md "
                "says why); leave it out, or use lock: sealed or lock: paper"
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
                f"states can be compared with one another only; use one of {', '.join(COMPARED)}"
            )
        if self.noise is not None:
            self._beside_noise()
        if (self.roster is None) != (self.identity is None):
            raise ConfigError(
                "keylock.roster: it goes with identity, the silo's own private key: give both "
                "(fedml-keylock roster init makes one)"
            )
        return self

    def _beside_noise(self) -> None:
        if self.colluders is None:
            raise ConfigError(
                "keylock.colluders: needed beside noise: how many silos may collude with the "
                "server, who know their own noise and take it off; 0 for none"
            )
        for name in ("tell_samples", "tell_accuracy", "log_training"):
            if getattr(self, name):
                raise ConfigError(
                    f"keylock.{name}: the server would be told what noise does not cover; leave "
                    "it out beside noise"
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
