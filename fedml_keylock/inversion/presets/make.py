"""An attack from a source's settings and what a user wants otherwise."""

from __future__ import annotations

from typing import Any

from ...errors import ConfigError
from ..attack import GradientInversion

__all__ = ["check_fields", "preset"]


def preset(settings: dict[str, Any], overrides: dict[str, Any]) -> GradientInversion:
    """The attack with these settings, but for the overrides.

    Raises:
        ConfigError: a field does not exist or its value is not allowed.

    """
    check_fields(GradientInversion, overrides)
    return GradientInversion(**{**settings, **overrides})


def check_fields(attack: Any, fields: dict[str, Any]) -> None:
    """Refuse fields that an attack's dataclass does not have.

    Raises:
        ConfigError: naming them, and those that there are.

    """
    unknown = sorted(set(fields) - set(attack.__dataclass_fields__))
    if unknown:
        allowed = ", ".join(sorted(attack.__dataclass_fields__))
        raise ConfigError(f"an attack has no field {', '.join(unknown)}; it has {allowed}")
