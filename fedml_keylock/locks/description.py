"""What a lock has done to a model, or would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["LayerCheck", "LockInfo", "LockIssue", "ModelCheck"]


@dataclass(frozen=True)
class LockInfo:
    """What `lock_model` did, and what `lock_info` finds.

    Attributes:
        layers: names of the locked layers.
        holders: names of the modules that the locks hang on.
        private_parameters: how many numbers the locks hold and train.
        public_parameters: how many the model has beside them, all of them shared.
        dead_channels: how many have a gamma of 0: they learn nothing, and their vanishing gradient
            shows it to the server.
        summary: the line that describes it.

    """

    layers: tuple[str, ...]
    holders: tuple[str, ...]
    private_parameters: int
    public_parameters: int
    dead_channels: int = 0
    summary: str = ""

    def __str__(self) -> str:
        return self.summary


@dataclass(frozen=True)
class LockIssue:
    """Why a layer, or a whole model (layer ""), cannot be locked."""

    layer: str
    reason: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.reason}" if self.layer else self.reason


@dataclass(frozen=True)
class LayerCheck:
    """What would become of one layer: locked, or the reason why not."""

    layer: str
    locked: bool
    how: str


@dataclass(frozen=True)
class ModelCheck:
    """What locking a model would do.

    Attributes:
        issues: everything that stands against it; empty when it can be locked.
        layers: every convolution, linear layer and embedding, locked or not and why.
        constants: public names that would always be sent as the same constant, with its value.
        shared: public names whose values the server would get, buffers included.

    """

    issues: tuple[LockIssue, ...]
    layers: tuple[LayerCheck, ...] = ()
    constants: Mapping[str, float] = field(default_factory=dict)
    shared: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.issues:
            return "cannot lock the model: " + "; ".join(map(str, self.issues))
        width = max(len(layer.layer) for layer in self.layers)
        lines = [
            f"{layer.layer:{width}}  {'locked' if layer.locked else 'shared'}  {layer.how}"
            for layer in self.layers
        ]
        return "\n".join([*lines, f"constant: {len(self.constants)}; shared: {len(self.shared)}"])

    @property
    def weakness(self) -> str:
        """What is known against locking the model so, or nothing."""
        if not self.layers or self.layers[0].locked:
            return ""
        first = self.layers[0].layer
        return (
            f"the first layer, {first}, is open, and no lock behind an open first layer hides its "
            f"input; add {first} to keylock.layers"
        )
