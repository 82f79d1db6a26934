"""Sections of a job's YAML: read with pydantic, refused in one line that a user can act on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import ConfigError

__all__ = ["Settings"]


class Settings(BaseModel):
    """A section whose every field has a default, and which knows no other fields.

    Example:
        >>> class Lamp(Settings):
        ...     section: ClassVar[str] = "lamp"
        ...     watts: int = 5
        >>> Lamp.from_mapping({"wats": 7})
        Traceback (most recent call last):
        fedml_keylock.errors.ConfigError: lamp.wats: no such field; allowed: watts

    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    section: ClassVar[str]

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any] | None) -> Self:
        """Read the section; None stands for an empty one.

        Raises:
            ConfigError: naming the field, the value and what is allowed.

        """
        if settings is not None and not isinstance(settings, Mapping):
            raise ConfigError(f"{cls.section}: must be a mapping of fields, not {settings!r}")
        return cls(**{str(field): value for field, value in (settings or {}).items()})

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise ConfigError(self._one_line(error)) from None

    @classmethod
    def _one_line(cls, error: ValidationError) -> str:
        first = error.errors(include_url=False)[0]
        if not first["loc"]:  # of fields that do not go together: the message names one
            return f"{cls.section}.{first['msg'].removeprefix('Value error, ')}"
        field = str(first["loc"][0])
        if first["type"] in ("extra_forbidden", "invalid_key"):
            return f"{cls.section}.{field}: no such field; allowed: {', '.join(cls.model_fields)}"
        # a union reports one problem for each of its members
        allowed = [e["msg"] for e in error.errors(include_url=False) if e["loc"][:1] == (field,)]
        what = "; or ".join(dict.fromkeys(m.removeprefix("Value error, ") for m in allowed))
        return f"{cls.section}.{field}: {first['input']!r} is not allowed: {what}"
