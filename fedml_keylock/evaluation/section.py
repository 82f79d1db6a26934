"""The `gradient_inversion:` section of a job's YAML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, FiniteFloat, StrictInt, field_validator, model_validator

from ..errors import ConfigError
from ..settings import Settings

__all__ = ["InversionSettings"]


class InversionSettings(Settings):
    """What to capture, and what to attack it with.

    Example:
        >>> InversionSettings(attacks=["dlg"]).attacks
        {'dlg': {}}

    """

    section: ClassVar[str] = "gradient_inversion"

    attacks: dict[str, dict[str, Any]] = Field(
        default={"inverting_gradients": {}, "dlg": {}}, min_length=1
    )
    """Names of registered attacks: a list, or a mapping of names to the fields that differ from the
    attack's own settings (`inverting_gradients: {steps: 500}`)."""
    knowledge: tuple[Literal["oblivious", "adaptive", "temporal", "simulating"], ...] = Field(
        default=("oblivious", "adaptive"), min_length=1
    )
    """What the server is taken to know; public data are its own test data. Insiders and oracles
    need private state, which no server has."""
    active: str | None = None
    """Have the server ATTACK the silos by one of the attacks, `imprint`, `trap_weights` or
    `inconsistent_models`: in one round it sends what the attack makes of its model in the model's
    place, and the job loses that round at the least. Left out: it keeps to the protocol."""
    batch: int | None = Field(default=None, ge=1, strict=True)
    """Images behind each update, as the server supposes. Left out: 1, and with `active` the job's
    batch size."""
    rounds: tuple[StrictInt, ...] = Field(default=(0, -1), min_length=1)
    """Which rounds are captured and attacked; negative ones count from the end. With `active` it
    is one, by itself the first."""
    images: int = Field(default=4, ge=1, strict=True)
    """How many updates are attacked, at the most."""
    loss: str | None = None
    """What the silos' trainers minimise: a loss of torch.nn with its arguments, such as
    `BCEWithLogitsLoss` or `CrossEntropyLoss(label_smoothing=0.1)`, or `module:function` of outputs
    and targets. Left out: what the job's trainer holds (an attribute such as `criterion`), or
    that of FedML's own trainers; where there is neither, cross entropy, which is then said."""
    bounds: tuple[float, float] | None = None
    """Least and greatest pixel value that the model is fed. Left out: 0 and 1, or where the
    server's test images go beyond, those of the first hundred."""
    output: Path = Path("leakage")
    """Folder for the capture and what the attacks make of it."""
    when: Literal["inline", "after", "never"] = "after"
    """Attack after the last round; or inline, while the silos wait for each captured round; or
    never: then only the capture is kept. A silo attacks itself before it sends, or never."""
    side: Literal["server", "silo"] = "server"
    """Who attacks: the server what it received, without the truth; or each silo its own update
    before it sends it, with its own data as the truth, and then only scores are kept."""
    probe: Literal["single_step", "as_sent"] = "single_step"
    """What a silo attacks: one step on each of `images` of its images at the round's weights, the
    worst case; or the update that it is about to send, where it was made of few images."""
    abort_above: dict[str, FiniteFloat] = {}  # noqa: RUF012  # pydantic copies it
    """In a silo: the score, by metric, above which the job ends in place of sending the update. It
    is the worst picture's, and what cannot be attacked as was asked is not sent either."""

    @model_validator(mode="before")
    @classmethod
    def _only_active(cls, fields: Any) -> Any:
        if isinstance(fields, Mapping) and isinstance(fields.get("active"), str):
            return {"attacks": [fields["active"]], "rounds": (0,), **fields}
        return fields

    @model_validator(mode="after")
    def _of_active(self) -> Self:
        if self.active is None:
            return self
        if self.side != "server":
            raise ValueError("active: it is the server who sends a model; set side: server")
        if self.active not in self.attacks:
            raise ValueError(f"active: {self.active} is none of attacks; name it there")
        if len(self.rounds) != 1:
            raise ValueError("rounds: with active it is one, such as [0]: the model is lost in it")
        return self

    @model_validator(mode="after")
    def _of_silos(self) -> Self:
        if self.abort_above and self.side != "silo":
            raise ValueError("abort_above: only a silo can stop its update: set side: silo")
        if self.abort_above and self.when == "never":
            raise ValueError("abort_above: when: never attacks nothing: leave when out")
        if self.side == "silo" and self.when == "inline":
            raise ValueError("when: inline is the server's; a silo attacks before it sends")
        if self.side == "server" and "probe" in self.model_fields_set:
            raise ValueError("probe: a server attacks what it has received; set side: silo")
        return self

    def rounds_of(self, total: int) -> frozenset[int]:
        """Indices of the rounds of a job of so many.

        Raises:
            ConfigError: the job has no such round.

        Example:
            >>> sorted(InversionSettings().rounds_of(10))
            [0, 9]

        """
        odd = [index for index in self.rounds if not -total <= index < total]
        if odd:
            raise ConfigError(
                f"{self.section}.rounds: {odd[0]}, and the job has rounds 0 to {total - 1} "
                "(comm_round); -1 is the last"
            )
        return frozenset(index % total for index in self.rounds)

    @field_validator("bounds")
    @classmethod
    def _ordered(cls, bounds: tuple[float, float] | None) -> tuple[float, float] | None:
        if bounds is not None and not -math.inf < bounds[0] < bounds[1] < math.inf:
            raise ValueError("bounds are the least and the greatest pixel value: [-1, 1]")
        return bounds

    @field_validator("attacks", mode="before")
    @classmethod
    def _named(cls, attacks: Any) -> Any:
        if isinstance(attacks, (list, tuple)) and all(isinstance(name, str) for name in attacks):
            return {name: {} for name in attacks}
        if isinstance(attacks, Mapping):
            return {name: fields or {} for name, fields in attacks.items()}
        raise ValueError("attacks are a list of names, or a mapping of names to fields")
