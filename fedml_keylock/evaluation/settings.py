"""The `gradient_inversion:` section of a job's YAML."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, StrictInt

from ..settings import Settings

__all__ = ["InversionSettings"]


class InversionSettings(Settings):
    """What to capture, and what to attack it with.

    Example:
        >>> InversionSettings().rounds
        (0, -1)

    """

    section: ClassVar[str] = "gradient_inversion"

    attacks: tuple[str, ...] = ("inverting_gradients", "dlg")
    """Names of registered attacks."""
    knowledge: tuple[Literal["oblivious", "adaptive"], ...] = ("oblivious", "adaptive")
    """What the server is taken to know. An oracle needs private state, which no server has."""
    rounds: tuple[StrictInt, ...] = (0, -1)
    """Which rounds are captured and attacked; negative ones count from the end."""
    images: int = Field(default=4, ge=1, strict=True)
    """How many updates are attacked, at the most."""
    output: Path = Path("leakage")
    """Folder for the capture and what the attacks make of it."""
    when: Literal["after", "never"] = "after"
    """Attack after the last round, or never: then only the capture is kept."""
