"""What a lock is configured by: the `keylock:` section of a job's YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ..errors import ConfigError
from ..settings import Settings

__all__ = ["KeyLockConfig"]

COMPARED = ("geo_median", "krum", "multikrum", "rfa")
"""FedML's own defenses that use nothing of updates but their distances from one another, which one
rotation of all of them leaves as they are."""

OF_ONE_LOCK: Mapping[str, str] = {
    "key_length": "paper",
    "layers": "paper",
    "activation": "paper",
    "chained": "paper",
    "share_norm_statistics": "paper",
    "group_key": "rotated",
    "mask": "rotated",
}
"""Fields that say something of one lock only, and which lock that is."""

RENAMED: Mapping[tuple[str, str | None], str] = {
    ("targets", None): "layers",
    ("then", None): "robust_aggregation",
    ("module", "whole"): "lock: rotated",
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
        'rotated'
        >>> KeyLockConfig(lock="paper", layers="all").key_length
        1024

    """

    section: ClassVar[str] = "keylock"

    lock: Literal["rotated", "paper"] = "rotated"
    """rotated: the model trains as it is, and its whole state is rotated by a secret orthogonal
    matrix before it is sent. paper: the published key-lock module, gamma and beta on layers."""
    group_key: Path | None = None
    """Of rotated: an owner-only file with a secret of 32 bytes or more that all silos have and the
    server has not. None: silos agree on one by themselves, which they can in an MPI job."""
    mask: bool = Field(default=True, strict=True)
    """Of rotated, in an MPI job: hide each silo's state by masks that cancel in FedML's average,
    from the server and, of three silos or more, from the other silos too. False beside
    `robust_aggregation`, which looks at single states; and there are none where silos take turns on
    the ranks."""
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
    """Whether a silo lets out what is logged while it trains, up to warnings: FedML's trainers log
    every batch's loss, which tells of the batch, and mpiexec carries it to the server's host."""
    vault: Path = Path("keylock_vault")
    """Folder with each silo's private state, one owner-only file a silo."""
    keep_history: bool = Field(default=False, strict=True)
    """Keep the private state that each round began with, for an audit with an oracle."""
    encrypt_vault: bool = Field(default=False, strict=True)
    """Encrypt the vault under the passphrase in FEDML_KEYLOCK_PASSPHRASE, or in the owner-only file
    that FEDML_KEYLOCK_PASSPHRASE_FILE names."""

    @property
    def masks(self) -> bool:
        """Whether states are to be masked: not beside a defense that compares single ones.

        Example:
            >>> KeyLockConfig().masks, KeyLockConfig(robust_aggregation="krum").masks
            (True, False)

        """
        return self.mask and self.robust_aggregation is None

    @model_validator(mode="before")
    @classmethod
    def _current_names(cls, fields: Any) -> Any:
        for name, value in fields.items() if isinstance(fields, dict) else ():
            if name not in RETIRED:
                continue
            new = RENAMED.get((name, None)) or RENAMED.get((name, str(value)))
            raise ConfigError(
                f"keylock.{name}: it is called {new} now"
                if new
                else f"keylock.{name}: {value!r} is of locks that are gone (docs/what-we-tried.md "
                "says why); leave it out, or use lock: rotated or lock: paper"
            )
        return fields

    @model_validator(mode="after")
    def _goes_together(self) -> KeyLockConfig:
        for name, lock in OF_ONE_LOCK.items():
            value = getattr(self, name)
            if lock != self.lock and value != type(self).model_fields[name].default:
                raise ConfigError(
                    f"keylock.{name}: {_listed(value)!r} is of lock: {lock}, and lock is "
                    f"{self.lock}; leave it out, or set lock: {lock}"
                )
        then = self.robust_aggregation
        if self.lock == "rotated" and then is not None:
            if then not in COMPARED:
                raise ConfigError(
                    f"keylock.robust_aggregation: {then!r} does not run under lock: rotated, whose "
                    "states can be compared with one another only; use one of "
                    f"{', '.join(COMPARED)}"
                )
            if "mask" in self.model_fields_set and self.mask:
                raise ConfigError(
                    f"keylock.mask: {then} looks at single states, which a mask hides; leave out "
                    "mask or robust_aggregation"
                )
        return self

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
    return str(value) if isinstance(value, Path) else value
