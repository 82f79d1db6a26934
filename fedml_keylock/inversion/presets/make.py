"""Makes an attack from a source's settings and a user's overrides."""

from __future__ import annotations

from typing import Any

from ...errors import ConfigError
from ..attack import GradientInversion
from ..unknowns.pixels import Pixels

__all__ = ["preset"]


def preset(overrides: dict[str, Any], **settings: Any) -> GradientInversion:
    """The attack with these settings, changed by the overrides.

    Overrides may also have `start`, as `Pixels` has it: a name, since YAML cannot hold a
    parametrisation.
    """
    fields = {**settings, **overrides}
    start = fields.pop("start", None)
    if start is not None:
        searched = fields.get("parametrisation", Pixels())
        if "parametrisation" in overrides or not isinstance(searched, Pixels):
            raise ConfigError(
                f"start: is of searches for pixels, and {fields['name']} searches "
                f"{type(searched).__name__}: leave it out"
            )
        fields["parametrisation"] = Pixels(start)
    return GradientInversion(**fields)
