"""Plain records that the defense, the attacks and the evaluation share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ClientUpdate", "Reconstruction"]


@dataclass(frozen=True)
class ClientUpdate:
    """What one silo sent in one round, as the server holds it. It never contains the truth.

    Attributes:
        before: the public state that the server had sent, name to tensor.
        after: the public state that the silo sent back, the same names and shapes.
        learning_rate: of the silo's SGD. FedML's server knows it: it is in the job's YAML.
        samples: how many samples the silo says that it holds.
        silo: index of the silo, from 0.
        round: index of the round, from 0.
    """

    before: Mapping[str, Tensor] = field(repr=False)
    after: Mapping[str, Tensor] = field(repr=False)
    learning_rate: float
    samples: int = 1
    silo: int = 0
    round: int = 0

    def pseudo_gradient(self, name: str) -> Tensor:
        """``(before - after) / learning_rate``, the gradient itself after one plain SGD step."""
        return (self.before[name] - self.after[name]) / self.learning_rate


@dataclass(frozen=True)
class Reconstruction:
    """What an attack made of some updates, one entry an update, in the order given.

    Attributes:
        images: ``(u, n, c, h, w)``: u updates, n images in each, clamped to the attack's bounds.
        labels: ``(u, n)`` integer class labels that the attacker recovered or was given.
        cost: ``(u,)`` the cost of the restart that was kept: how well the attacker explained the
            update. A bad picture at a high cost is a failed search, not a defense.
        history: ``(t, u)`` the kept restart's cost at t evenly spaced steps.
        diverged: ``(u,)`` how many restarts were dropped because their cost became NaN or infinite.
        attack: name of the attack.
        knowledge: level of knowledge that it had.
    """

    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    cost: Tensor = field(repr=False)
    history: Tensor = field(repr=False)
    diverged: Tensor = field(repr=False)
    attack: str
    knowledge: str
