"""What a lock is made of: the `keylock:` section of a job's YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ..errors import ConfigError
from ..settings import Settings

__all__ = ["KeyLockConfig"]

COMPARED = ("geo_median", "krum", "multikrum", "rfa")
"""FedML's own defenses that use nothing of updates but how far they are from one another: a turn
that is the same for all leaves that as it is."""
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "module": "affine",
        "targets": "first",
        "activation": "relu",
        "key_length": 1024,
        "chained": False,
    },
}
"""paper is that of arXiv 2305.04095's numbers, its "single" variant."""
_LAYERS_ONLY = (
    "key_length",
    "targets",
    "activation",
    "chained",
    "share_norm_statistics",
)
"""What says something of locks on layers, and nothing of one on the whole state."""


class KeyLockConfig(Settings):
    """Configuration of the key-lock defense. Every field has a default that works.

    Without any it is a lock on the whole state; the fields that are of locks on layers go with a
    module that has them.

    Example:
        >>> KeyLockConfig().module
        'whole'
        >>> KeyLockConfig(module="affine", targets="all").key_length
        1024

    """

    section: ClassVar[str] = "keylock"

    key_length: int = Field(default=1024, ge=1, le=1_048_576, strict=True)
    """K, how many numbers the key has."""
    preset: Literal["paper"] | None = None
    """paper: the published lock. Fields beside it have the last word."""
    module: Literal["whole", "affine"] = "whole"
    """whole: a private rotation of the whole state, which trains as it is. affine: gamma and beta
    on layers, as published."""
    targets: Literal["first", "all"] | tuple[str, ...] = "first"
    """Which layers: the first convolution, every convolution, or globs of module names. Under
    whole it is all."""
    group_key: Path | None = None
    """Of whole: an owner-only file with a secret of 32 bytes or more that all silos have and the
    server has not. None: silos agree on one by themselves, which they can in an MPI job."""
    mask: bool = Field(default=True, strict=True)
    """Under module: whole, in an MPI job: hide each silo's state by masks that cancel in FedML's
    average, from the server and, of three silos or more, from the other silos too. False beside
    `then`, which looks at single states; and there are none where silos take turns on the ranks."""
    activation: Literal["relu", "sigmoid"] = "relu"
    """Applied to gamma and beta: relu when the paper trains, sigmoid in its leak tests."""
    chained: bool = Field(default=False, strict=True)
    """Whether a layer's gamma and beta are the next layer's keys, as the paper has it for all."""
    share_norm_statistics: bool = Field(default=False, strict=True)
    """Whether BatchNorm running statistics of locked layers are shared (they tell of the batch)."""
    vault: Path = Path("keylock_vault")
    """Folder with each silo's private state, one owner-only file a silo."""
    then: str | None = None
    """FedML's own defense that its server runs on the locked updates, such as krum or rfa; its
    settings stand in defense_args as FedML has them. None: nothing but the average."""
    own_accuracy: bool = Field(default=True, strict=True)
    """Whether a silo tests each model that it is given under its own lock, whenever FedML's server
    tests; it tells FedML's log, mlops.log and wandb."""
    log_training: bool = Field(default=False, strict=True)
    """Whether a silo lets out what is logged while it trains, up to warnings: FedML's trainers log
    every batch's loss, which tells of the batch, and mpiexec carries it to the server's host."""
    keep_history: bool = Field(default=False, strict=True)
    """Keep the private state that each round began with, for an audit with an oracle."""
    encrypt_vault: bool = Field(default=False, strict=True)
    """Encrypt the vault under the passphrase in FEDML_KEYLOCK_PASSPHRASE, or in the owner-only file
    that FEDML_KEYLOCK_PASSPHRASE_FILE names."""

    @property
    def title(self) -> str:
        """How reports name it, by what sets one lock apart from another.

        Example:
            >>> KeyLockConfig(module="affine", targets=["stem", "head.*"], chained=True).title
            'keylock:affine:stem,head.*:chained'

        """
        parts = [self.section, self.module, _listed(self.targets)]
        parts += ["group"] * (self.group_key is not None)
        parts += ["unmasked"] * (not self.mask)
        return ":".join(parts + ["chained"] * self.chained)

    @property
    def is_whole(self) -> bool:
        """Whether the lock is on the whole state, and not on layers.

        Example:
            >>> KeyLockConfig().is_whole, KeyLockConfig(module="affine").is_whole
            (True, False)

        """
        return self.module == "whole"

    @property
    def weakness(self) -> str:
        """What its user should know of it, in one line; empty where nothing is known.

        Example:
            >>> KeyLockConfig(module="affine").weakness[:36]
            'affine does not withstand an attacke'
            >>> KeyLockConfig().weakness
            ''

        """
        if self.is_whole:
            return ""
        return (
            "affine does not withstand an attacker who knows of it, as the README shows; module: "
            "whole, the default, has withstood more"
        )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        preset = PRESETS.get(str(fields.get("preset")))
        # it is what it stands for: two silos that write the same lock in two ways agree
        given = fields if preset is None else {**preset, **fields, "preset": None}
        if given.get("module", "whole") != "whole":
            return given
        odd = ["preset"] if preset is not None and preset["module"] != "whole" else []
        for name in _LAYERS_ONLY:
            default = "all" if name == "targets" else cls.model_fields[name].default
            odd += [name] * (fields.get(name, default) != default)
        if odd:
            raise ConfigError(
                f"keylock.{odd[0]}: {fields[odd[0]]!r} is of locks on layers, and module: whole "
                "has none; leave it out, or name a module such as affine"
            )
        if given.get("then") is not None:
            if given.get("mask") is True:
                raise ConfigError(
                    f"keylock.mask: {given['then']} looks at single states, which a mask hides; "
                    "leave out mask or then"
                )
            given = {**given, "mask": False}
        return {**given, "targets": "all"}

    @model_validator(mode="after")
    def _goes_together(self) -> KeyLockConfig:
        odd = ["group_key"] * (self.group_key is not None) + ["mask"] * (not self.mask)
        if odd and not self.is_whole:
            raise ConfigError(
                f"keylock.{odd[0]} goes with module: whole, the default; leave out either"
            )
        if self.is_whole and self.then not in (None, *COMPARED):
            raise ConfigError(
                f"keylock.then: {self.then!r} does not run under module: whole, whose states can "
                f"be compared with one another only; use one of {', '.join(COMPARED)}, or preset: "
                "strong"
            )
        return self

    @field_validator("targets", mode="before")
    @classmethod
    def _some_layers(cls, value: Any) -> Any:
        known = "use first, all, or a list of module-name globs"
        if isinstance(value, str) and value not in ("first", "all"):
            raise ValueError(f"{known} such as ['layer1.*']")
        if isinstance(value, (list, tuple)) and not value:
            raise ValueError(known)
        return value


def _listed(layers: str | tuple[str, ...]) -> str:
    return layers if isinstance(layers, str) else ",".join(layers)
