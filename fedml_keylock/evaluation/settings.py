"""The `gradient_inversion:` section of a job's YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, StrictInt, field_validator

from ..settings import Settings

__all__ = ["InversionSettings"]


class InversionSettings(Settings):
    """What to capture, and what to attack it with.

    Example:
        >>> InversionSettings(attacks=["dlg"]).attacks
        {'dlg': {}}

    """

    section: ClassVar[str] = "gradient_inversion"

    attacks: dict[str, dict[str, Any]] = {  # noqa: RUF012  # pydantic copies it
        "inverting_gradients": {},
        "dlg": {},
    }
    """Names of registered attacks: a list, or a mapping of names to the fields that differ from the
    attack's own settings (`inverting_gradients: {steps: 500}`)."""
    knowledge: tuple[Literal["oblivious", "adaptive", "temporal", "simulating"], ...] = (
        "oblivious",
        "adaptive",
    )
    """What the server is taken to know; public data are its own test data. Insiders and oracles
    need private state, which no server has."""
    rounds: tuple[StrictInt, ...] = (0, -1)
    """Which rounds are captured and attacked; negative ones count from the end."""
    images: int = Field(default=4, ge=1, strict=True)
    """How many updates are attacked, at the most."""
    output: Path = Path("leakage")
    """Folder for the capture and what the attacks make of it."""
    when: Literal["after", "never"] = "after"
    """Attack after the last round, or never: then only the capture is kept."""

    @field_validator("attacks", mode="before")
    @classmethod
    def _named(cls, attacks: Any) -> Any:
        if isinstance(attacks, (list, tuple)) and all(isinstance(name, str) for name in attacks):
            return {name: {} for name in attacks}
        if isinstance(attacks, Mapping):
            return {name: fields or {} for name, fields in attacks.items()}
        raise ValueError("attacks are a list of names, or a mapping of names to fields")
