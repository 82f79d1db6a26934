"""Plain records that the defense, the attacks and the evaluation share."""

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
    "ClientUpdate",
    "Credentials",
    "JobSecrets",
    "PrivacyLoss",
    "Reconstruction",
    "Schedule",
    "Surrogate",
    "TokenReconstruction",
    "UpdateTransform",
]


@dataclass(frozen=True)
class ClientUpdate:
    """What one silo sent in one round, as the server holds it. It never contains the truth.

    Attributes:
        before: the public state that the server had sent, name to tensor.
        after: the public state that the silo sent back, the same names and shapes. Fewer names, or
            gradients in their place, if that is what the job's own trainer sends.
        learning_rate: of the silo's SGD. FedML's server knows it: it is in the job's YAML.
        samples: how many samples the silo says that it holds.
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
    """What an attack made of some updates, one entry an update, in the order given.

    Attributes:
        images: ``(u, n, c, h, w)``: u updates, n images in each, clamped to the attack's bounds.
        labels: ``(u, n)`` integer class labels that the attacker recovered or was given, or
            ``(u, n, ...)`` of what else the loss takes for targets; -1 where he has none.
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


@dataclass(frozen=True)
class TokenReconstruction:
    """Which tokens an attack found behind some updates, one entry an update, in the order given.

    Attributes:
        tokens: u tensors of sorted token indices, each as long as the update has different tokens.
            A set: neither order, nor how often, nor which text of a batch.
        attack: name of the attack.
        knowledge: level of knowledge that it had.
        texts: of an attack that finds them, the texts of each update, their tokens in order.
        cost: ``(u,)`` of the same: how badly the texts explain the update; None of a set.

    """

    tokens: tuple[Tensor, ...] = field(repr=False)
    attack: str
    knowledge: str
    texts: tuple[tuple[Tensor, ...], ...] = field(default=(), repr=False)
    cost: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Agreement:
    """What server and silos must agree on. Public.

    Attributes:
        shapes: every public name with its shape.
        dtypes: every public name with its dtype.
        constants: public names whose value says nothing because it is always this one.
        layers: names of the protected layers.
        settings: the public part of the configuration.
        aggregation: what of it concerns the server's aggregation only. Private state on disk is not
            bound to it.
        sealed: whether silos send words that the server adds up, and cannot read.
        infinite: public names of which the model has infinite numbers from the start.

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
        """For each of PARTS the first 36 bits of its digest, which every message of a silo carries.

        In base 64, six characters a part: it is sent in every message.
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
    """Who takes part in which round of a job, of so many silos in total. Public."""

    silos: int
    rounds: tuple[tuple[int, ...], ...] = field(repr=False)


@dataclass(frozen=True)
class PrivacyLoss:
    """What a silo has spent in so many rounds, by (epsilon, delta)-differential privacy of a unit.

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
class Surrogate:
    """A defended model as an attacker knows it: the defense's kind, not its private state.

    Attributes:
        model: computes what a silo's model computes in training, with the private tensors as plain
            parameters, at the values that stand for no defense.
        names: which of its parameters those are.
        draw: ``draw(count, generator)``: name to ``(count, *shape)`` starts, drawn from the
            distribution of a new silo's private state, which is public.
        update_transform: of a defense that changes what is sent and not what is computed; else
            None.

    """

    model: nn.Module
    names: tuple[str, ...]
    draw: Callable[[int, torch.Generator], dict[str, Tensor]]
    update_transform: UpdateTransform | None = None

    def read(self, update: ClientUpdate) -> ClientUpdate:
        """An update that was sent, as somebody without private state reads it: as model states."""
        return update if self.update_transform is None else self.update_transform.read(update)


@runtime_checkable
class UpdateTransform(Protocol):
    """What a defense does to updates themselves, for whoever audits it."""

    def protect(
        self, update: ClientUpdate, generator: torch.Generator
    ) -> tuple[ClientUpdate, dict[str, Tensor]]:
        """A plain update as it is sent under fresh private state, and that state."""

    def read(self, update: ClientUpdate) -> ClientUpdate:
        """An update that was sent, as somebody without private state reads it: as model states."""

    def recover(
        self, update: ClientUpdate, private: Mapping[str, Tensor], *, colluding: bool = False
    ) -> ClientUpdate:
        """An update that was sent, as whoever has the private state reads it.

        Or, colluding, only what the other silos have of it.
        """

    def observable(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Tensor:
        """What of updates, name to ``(b, *shape)``, does not depend on it: ``(b, features)``."""

    def simulate(
        self,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """For who simulates: ``after``, name to ``(b, *shape)``, under as much noise as silos'."""


@dataclass(frozen=True)
class Credentials:
    """What a silo shows the others when they agree on secrets.

    Attributes:
        group_key: a file with a secret that all silos have; None without one.
        roster: a file with the silos' public keys; None without one.
        identity: a file with this silo's own private key; None without a roster.
        link_key: a file with a secret that server and silos have; None without one.

    """

    group_key: Path | None = None
    roster: Path | None = None
    identity: str | None = None
    link_key: Path | None = None


Exchange = Callable[[Mapping[int, bytes], Callable[[], None]], Mapping[int, bytes]]
"""A way to the other silos; see `JobSecrets`."""


@dataclass(frozen=True)
class JobSecrets:
    """What the silos of one job have agreed on, and their server does not have.

    Attributes:
        group: bytes that all silos have, new in every job.
        silo: index of this one.
        pairs: by another silo's index, 32 bytes that only these two have; empty for no pairs.
        samples: of every silo, by its index; empty where they have not said it.
        transcript: digest of all that the silos have told one another. It is no secret.
        exchange: ``exchange(messages, meanwhile)`` sends each other silo its bytes past the
            server, calls ``meanwhile()``, and returns what each has sent; None where nothing
            reaches them but the server.

    """

    group: bytes = field(repr=False)
    silo: int = 0
    pairs: Mapping[int, bytes] = field(default_factory=dict, repr=False)
    samples: Mapping[int, float] = field(default_factory=dict)
    transcript: bytes = b""
    exchange: Exchange | None = field(default=None, repr=False, compare=False)
