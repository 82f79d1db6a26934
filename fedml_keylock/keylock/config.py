"""What a lock is made of: the `keylock:` section of a job's YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from ..settings import Settings

__all__ = ["KeyLockConfig"]


class KeyLockConfig(Settings):
    """Configuration of the key-lock defense. Every field has a default that works.

    Example:
        >>> KeyLockConfig(module="mixing", targets="all").key_length
        1024

    """

    section: ClassVar[str] = "keylock"

    key_length: int = Field(default=1024, ge=1, le=1_048_576, strict=True)
    """K, how many numbers the key has."""
    module: Literal["affine", "mixing", "weights"] = "affine"
    """affine: gamma and beta, as published. mixing: and a private matrix across the channels.
    weights: that matrix on the layer's weights, which costs less and brings no norm."""
    targets: Literal["first", "all"] | tuple[str, ...] = "first"
    """Which layers: the first convolution, every convolution, or globs of module names."""
    activation: Literal["relu", "sigmoid", "softplus", "identity"] = "relu"
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
    keep_history: bool = Field(default=False, strict=True)
    """Keep the private state that each round began with, for an audit with an oracle."""
    encrypt_vault: bool = Field(default=False, strict=True)
    """Encrypt the vault under the passphrase in FEDML_KEYLOCK_PASSPHRASE, or in the owner-only file
    that FEDML_KEYLOCK_PASSPHRASE_FILE names. Needs the extra crypto."""

    @property
    def title(self) -> str:
        """How reports name it, by what sets one lock apart from another.

        Example:
            >>> KeyLockConfig(module="mixing", targets=["stem", "head.*"], chained=True).title
            'keylock:mixing:stem,head.*:chained'

        """
        targets = self.targets if isinstance(self.targets, str) else ",".join(self.targets)
        return f"{self.section}:{self.module}:{targets}{':chained' if self.chained else ''}"

    @field_validator("targets", mode="before")
    @classmethod
    def _some_layers(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in ("first", "all"):
            raise ValueError(f"use first, all, or a list of module-name globs such as [{value!r}]")
        if isinstance(value, (list, tuple)) and not value:
            raise ValueError("use first, all, or a list of module-name globs")
        return value
