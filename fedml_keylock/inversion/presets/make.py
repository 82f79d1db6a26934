"""An attack from a source's settings and what a user wants otherwise."""

from __future__ import annotations

from typing import Any

from ...errors import ConfigError
from ..attack import GradientInversion
from ..unknowns.pixels import STARTS, Pixels

__all__ = ["check_fields", "preset"]


def preset(settings: dict[str, Any], overrides: dict[str, Any]) -> GradientInversion:
    """The attack with these settings, but for the overrides.

    Beside the attack's own fields they may have `start`, as `Pixels` has it: a word, where YAML
    cannot have a parametrisation.

    Raises:
        ConfigError: a field does not exist or its value is not allowed.

    """
    fields = {**settings, **overrides}
    start = fields.pop("start", None)
    check_fields(GradientInversion, fields)
    if start is not None:
        if start not in STARTS:
            raise ConfigError(f"start is one of {', '.join(STARTS)}, not {start!r}")
        fields["parametrisation"] = Pixels(start)
    return GradientInversion(**fields)


def check_fields(attack: Any, fields: dict[str, Any]) -> None:
    """Refuse fields that an attack's dataclass does not have.

    Raises:
        ConfigError: naming them, and those that there are.

    """
    unknown = sorted(set(fields) - set(attack.__dataclass_fields__))
    if unknown:
        allowed = ", ".join(sorted(attack.__dataclass_fields__))
        raise ConfigError(f"an attack has no field {', '.join(unknown)}; it has {allowed}")
