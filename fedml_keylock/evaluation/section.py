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
    """What to capture, and which attacks to run on it.

    Example:
        >>> InversionSettings(attacks=["dlg"]).attacks
        {'dlg': {}}

    """

    section: ClassVar[str] = "gradient_inversion"

    attacks: dict[str, dict[str, Any]] = Field(
        default={"inverting_gradients": {}, "dlg": {}}, min_length=1
    )
    """Names of registered attacks: a list, or a mapping from names to changed settings
    (`inverting_gradients: {steps: 500}`)."""
    knowledge: tuple[Literal["oblivious", "adaptive", "temporal", "simulating"], ...] = Field(
        default=("oblivious", "adaptive"), min_length=1
    )
    """The attackers to try, by what they know. Public data are the server's own test data. Levels
    that need silos' private state are left to `fedml-keylock audit`: no server has it."""
    active: str | None = None
    """Make the server ATTACK the silos as a malicious one, by `imprint`, `trap_weights` or
    `inconsistent_models`. In one round it sends a manipulated model, and the job loses at least
    that round. Left out: an honest-but-curious server."""
    batch: int | None = Field(default=None, ge=1, strict=True)
    """Images behind each update, as the attacker assumes. Left out: 1; with `active`, the job's
    batch size."""
    rounds: tuple[StrictInt, ...] = Field(default=(0, -1), min_length=1)
    """Rounds to capture and attack; negative ones count from the end. With `active` exactly one, by
    default the first."""
    images: int = Field(default=4, ge=1, strict=True)
    """Largest number of updates to attack."""
    loss: str | None = None
    """Loss that the silos' trainers minimise: a loss of torch.nn with its arguments, such as
    `BCEWithLogitsLoss` or `CrossEntropyLoss(label_smoothing=0.1)`, or `module:function` of outputs
    and targets. Left out: the loss that the job's trainer holds (an attribute such as `criterion`),
    or that of FedML's own trainers. If there is neither: cross entropy, with a notice."""
    bounds: tuple[float, float] | None = None
    """Least and greatest pixel value of the model's inputs. Left out: 0 and 1, or the range of the
    server's first hundred test images if that is wider."""
    output: Path = Path("leakage")
    """Folder for the capture and the attacks' results."""
    when: Literal["inline", "after", "never"] = "after"
    """When the server attacks: `after` the last round; `inline`, while the silos wait in each
    captured round; or `never`, to keep only the capture. A silo attacks before it sends, or
    `never`."""
    side: Literal["server", "silo"] = "server"
    """Who attacks: the `server`, on what it received, without the truth. Or each `silo`, on its own
    update before it sends it, with its own data as the truth; then only scores are kept."""
    probe: Literal["single_step", "as_sent"] = "single_step"
    """What a silo attacks: single steps, each on one of `images` of its images, at the round's
    weights (the worst case); or the update that it is about to send, if that is of few images."""
    abort_above: dict[str, FiniteFloat] = {}  # noqa: RUF012  # pydantic copies it
    """Limits for a silo, by metric: if the worst picture's score is above one, the silo ends the
    job and does not send the update. Nor does it send an update that it cannot attack as
    configured."""

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
        """Indices, from 0, of the chosen rounds in a job of `total` rounds.

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
