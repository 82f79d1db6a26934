"""What a lock is made of: the `keylock:` section of a job's YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..errors import ConfigError

__all__ = ["KeyLockConfig", "one_line"]


class KeyLockConfig(BaseModel):
    """Configuration of the key-lock defense. Every field has a default that works.

    Example:
        >>> KeyLockConfig(module="mixing", targets="all").key_length
        1024
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    key_length: int = Field(default=1024, ge=1, le=1_048_576)
    """K, how many numbers the key has."""
    module: Literal["affine", "mixing"] = "affine"
    """affine: gamma and beta, as published. mixing: and a private matrix across the channels."""
    targets: Literal["first", "all"] | tuple[str, ...] = "first"
    """Which layers: the first convolution, every convolution, or globs of module names."""
    activation: Literal["relu", "sigmoid", "softplus", "identity"] = "relu"
    """Applied to gamma and beta: relu when the paper trains, sigmoid in its leak tests."""
    share_norm_statistics: bool = False
    """Whether BatchNorm running statistics of locked layers are shared (they give away the batch)."""
    vault: Path = Path("keylock_vault")
    """Folder with each silo's private state, one owner-only file a silo."""
    keep_history: bool = False
    """Keep the private state that each round began with, for an audit with an oracle."""

    @field_validator("targets", mode="before")
    @classmethod
    def _globs(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("targets")
    @classmethod
    def _not_empty(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(value, tuple) and not value:
            raise ValueError("is an empty list; allowed: first, all, or module-name globs")
        return value

    @field_validator("vault", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return Path(value) if isinstance(value, str) else value

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any] | None) -> KeyLockConfig:
        """Read the YAML section.

        Raises:
            ConfigError: naming the field, the value and what is allowed.

        Example:
            >>> KeyLockConfig.from_mapping({"targets": ["features.*"]}).targets
            ('features.*',)
        """
        if settings is not None and not isinstance(settings, Mapping):
            raise ConfigError(f"keylock: must be a mapping of fields, not {settings!r}")
        try:
            return cls(**(settings or {}))
        except ValidationError as error:
            raise ConfigError(one_line("keylock", error, cls)) from None


def one_line(section: str, error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem of a pydantic error as one line: field, value, what is allowed.

    Example:
        >>> try:
        ...     KeyLockConfig(key_length=0)
        ... except ValidationError as error:
        ...     print(one_line("keylock", error, KeyLockConfig))
        keylock.key_length: 0 is not allowed: Input should be greater than or equal to 1
    """
    first = error.errors(include_url=False)[0]
    field = str(first["loc"][0]) if first["loc"] else "?"
    if first["type"] == "extra_forbidden":
        return f"{section}.{field}: no such field; allowed: {', '.join(model.model_fields)}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{section}.{field}: {first['input']!r} is not allowed: {message}"
