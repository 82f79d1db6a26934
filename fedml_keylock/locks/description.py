"""Describes what a lock has done to a model, or would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["LayerCheck", "LockInfo", "LockIssue", "ModelCheck"]


@dataclass(frozen=True)
class LockInfo:
    """What `lock_model` did, and what `lock_info` finds.

    Attributes:
        layers: names of the locked layers.
        holders: names of the modules that carry the locks.
        private_parameters: how many numbers the locks train.
        public_parameters: how many other numbers the model has, all of them shared.
        dead_channels: how many channels have a gamma of 0: they learn nothing, and the server sees
            their gradient vanish.
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
    """Why a layer, or the whole model (layer ""), cannot be locked."""

    layer: str
    reason: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.reason}" if self.layer else self.reason


@dataclass(frozen=True)
class LayerCheck:
    """Whether one layer would be locked, or the reason why not."""

    layer: str
    locked: bool
    how: str


@dataclass(frozen=True)
class ModelCheck:
    """What locking a model would do.

    Attributes:
        issues: every reason why the model cannot be locked; empty when it can.
        layers: every convolution, linear layer and embedding, locked or not, and why.
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
        """The known weakness of locking the model this way; empty if none is known."""
        if not self.layers or self.layers[0].locked:
            return ""
        first = self.layers[0].layer
        return (
            f"the first layer, {first}, is not locked, and no lock behind it hides its input; add "
            f"{first} to keylock.layers"
        )
