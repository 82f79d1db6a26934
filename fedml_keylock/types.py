"""The records that the defense, the attacks and the evaluation share."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

__all__ = [
    "Agreement",
    "AttackerModel",
    "ClientUpdate",
    "Credentials",
    "JobSecrets",
    "PrivacyLoss",
    "Reconstruction",
    "Schedule",
    "TokenReconstruction",
    "UpdateTransform",
]


@dataclass(frozen=True)
class ClientUpdate:
    """What one silo sent in one round, as the server has it. It never contains the truth.

    Attributes:
        before: the public state that the server had sent, name to tensor.
        after: the public state that the silo sent back, with the same names and shapes. It may have
            fewer names, or gradients in their place, if the job's trainer sends that.
        learning_rate: of the silo's SGD. FedML's server knows it from the job's YAML.
        samples: how many samples the silo reports.
        silo: index of the silo, from 0.
        round: index of the round, from 0.

    """

    before: Mapping[str, Tensor] = field(repr=False)
    after: Mapping[str, Tensor] = field(repr=False)
    learning_rate: float
    samples: float = 1
    silo: int = 0
    round: int = 0

    def pseudo_gradient(self, name: str) -> Tensor:
        """``(before - after) / learning_rate``, the gradient itself after one plain SGD step."""
        return (self.before[name] - self.after[name]) / self.learning_rate


@dataclass(frozen=True)
class Reconstruction:
    """What an attack reconstructed from updates, one entry for each update, in the given order.

    Attributes:
        images: ``(u, n, c, h, w)``: u updates, n images in each, clamped to the attack's bounds.
        labels: ``(u, n)`` class labels that the attacker recovered or was given, or ``(u, n, ...)``
            of the loss's other targets; -1 where unknown.
        cost: ``(u,)`` the cost of the kept restart: how well it explains the update. A bad picture
            at a high cost is a failed search, not a defense.
        history: ``(t, u)`` the kept restart's cost at t evenly spaced steps.
        diverged: ``(u,)`` how many restarts were dropped because their cost became NaN or infinite.
        attack: name of the attack.
        knowledge: the attack's level of knowledge.

    """

    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    cost: Tensor = field(repr=False)
    history: Tensor = field(repr=False)
    diverged: Tensor = field(repr=False)
    attack: str
    knowledge: str


@dataclass(frozen=True)
class TokenReconstruction:
    """Which tokens an attack found in updates, one entry for each update, in the given order.

    Attributes:
        tokens: u tensors of sorted token indices, one index for each different token. A set: it has
            neither order, nor counts, nor which text of a batch.
        attack: name of the attack.
        knowledge: the attack's level of knowledge.
        texts: for an attack that finds whole texts, the texts of each update, their tokens in
            order.
        cost: ``(u,)`` how badly those texts explain the update; None for a set.

    """

    tokens: tuple[Tensor, ...] = field(repr=False)
    attack: str
    knowledge: str
    texts: tuple[tuple[Tensor, ...], ...] = field(default=(), repr=False)
    cost: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Agreement:
    """The public settings on which server and silos must agree.

    Attributes:
        shapes: every public name with its shape.
        dtypes: every public name with its dtype.
        constants: public names that always have the same constant value.
        layers: names of the protected layers.
        settings: the public part of the configuration.
        aggregation: its part that concerns the server's aggregation only. Private state on disk is
            not bound to it.
        sealed: whether silos send words that the server adds up and cannot read.
        infinite: public names with infinite numbers in the model from the start.

    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    constants: Mapping[str, float]
    layers: tuple[str, ...]
    settings: Mapping[str, Any]
    aggregation: Mapping[str, Any] = field(default_factory=dict)
    sealed: bool = False
    infinite: frozenset[str] = frozenset()

    PARTS: ClassVar[tuple[str, ...]] = (
        "model",
        "locked layers",
        "settings",
        "settings of aggregation",
    )

    @property
    def layout(self) -> str:
        """What private state on disk is bound to: the model, the protected layers, the settings."""
        return sha256("".join(self._digests[:3]).encode()).hexdigest()[:16]

    @property
    def mark(self) -> str:
        """The first 36 bits of the digest of each of PARTS, which every message of a silo carries.

        In base 64, six characters a part.
        """
        return "".join(digest[:6] for digest in self._digests)

    def difference(self, mark: str) -> str:
        """The first of PARTS in which another rank's mark differs."""
        for index, (part, own) in enumerate(zip(self.PARTS, self._digests, strict=True)):
            if mark[6 * index : 6 * index + 6] != own[:6]:
                return part
        return "nothing"

    @cached_property
    def _digests(self) -> list[str]:
        model = [[n, list(s), str(self.dtypes[n])] for n, s in self.shapes.items()]
        parts: list[Any] = [model, list(self.layers), dict(sorted(self.settings.items()))]
        parts.append(dict(sorted(self.aggregation.items())))
        return [b64encode(sha256(json.dumps(part).encode()).digest()).decode() for part in parts]


@dataclass(frozen=True)
class Schedule:
    """Which of a job's silos take part in each round. Public."""

    silos: int
    rounds: tuple[tuple[int, ...], ...] = field(repr=False)


@dataclass(frozen=True)
class PrivacyLoss:
    """What a silo has spent in so many rounds: the (epsilon, delta) of a unit.

    Example:
        >>> print(PrivacyLoss(2.514, 1e-5, "silo", 4))
        epsilon 2.51 at delta 1e-05 (unit: silo) after 4 rounds

    """

    epsilon: float
    delta: float
    unit: str
    rounds: int

    def __str__(self) -> str:
        spent = f"epsilon {self.epsilon:.3g} at delta {self.delta:g} (unit: {self.unit})"
        return f"{spent} after {self.rounds} round{'s' * (self.rounds != 1)}"


@dataclass(frozen=True)
class AttackerModel:
    """The attacker's model: a defended model without its private state.

    Attributes:
        model: computes what a silo's model computes in training. The private tensors are plain
            parameters, with values that mean no defense.
        names: of those parameters.
        draw: ``draw(count, generator)``: name to ``(count, *shape)`` initial values, from the
            public distribution of a new silo's private state.
        update_transform: for a defense that changes what is sent, not what is computed; else None.

    """

    model: nn.Module
    names: tuple[str, ...]
    draw: Callable[[int, torch.Generator], dict[str, Tensor]]
    update_transform: UpdateTransform | None = None

    def read(self, update: ClientUpdate) -> ClientUpdate:
        """A sent update as read without private state: as model states."""
        return update if self.update_transform is None else self.update_transform.read(update)


@runtime_checkable
class UpdateTransform(Protocol):
    """How a defense transforms updates, for an audit."""

    def protect(
        self, update: ClientUpdate, generator: torch.Generator
    ) -> tuple[ClientUpdate, dict[str, Tensor]]:
        """Protect a plain update under fresh private state; returns both."""

    def read(self, update: ClientUpdate) -> ClientUpdate:
        """A sent update as read without private state: as model states."""

    def recover(
        self, update: ClientUpdate, private: Mapping[str, Tensor], *, colluding: bool = False
    ) -> ClientUpdate:
        """A sent update as its silo reads it, with the private state.

        With `colluding`, as another silo reads it.
        """

    def observable(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Tensor:
        """What of updates, name to ``(b, *shape)``, an attacker can observe: ``(b, features)``."""

    def simulate(
        self,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Simulated states ``after``, name to ``(b, *shape)``, as an attacker would read them."""


@dataclass(frozen=True)
class Credentials:
    """The files with which a silo takes part in the key agreement.

    Attributes:
        group_key: a file with a secret that all silos share, or None.
        roster: a file with the silos' public keys, or None.
        identity: a file with this silo's own private key; None without a roster.
        link_key: a file with a secret that server and silos share, or None.

    """

    group_key: Path | None = None
    roster: Path | None = None
    identity: str | None = None
    link_key: Path | None = None


Exchange = Callable[[Mapping[int, bytes], Callable[[], None]], Mapping[int, bytes]]
"""A channel to the other silos; see `JobSecrets`."""


@dataclass(frozen=True)
class JobSecrets:
    """The secrets on which the silos of one job agreed; the server lacks them.

    Attributes:
        group: bytes that all silos have, new in every job.
        silo: index of this one.
        pairs: for each other silo, by index, 32 bytes that only the two have; empty without pairs.
        samples: of every silo, by index; empty if they did not report them.
        transcript: digest of all that the silos told one another. It is not secret.
        exchange: ``exchange(messages, meanwhile)`` sends each other silo its bytes past the server,
            calls ``meanwhile()``, and returns what each has sent; None without a channel past the
            server.

    """

    group: bytes = field(repr=False)
    silo: int = 0
    pairs: Mapping[int, bytes] = field(default_factory=dict, repr=False)
    samples: Mapping[int, float] = field(default_factory=dict)
    transcript: bytes = b""
    exchange: Exchange | None = field(default=None, repr=False, compare=False)
