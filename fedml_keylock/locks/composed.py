"""`lock: [paper, sealed]`: the published module in the model, and sealed updates on the wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from ..errors import ConfigError
from ..types import AttackerModel, Credentials, JobSecrets
from .config import KeyLockConfig
from .description import LockInfo
from .paper.lock import PaperLock
from .sealed.lock import SealedLock

__all__ = ["SealedPaperLock"]


class SealedPaperLock(PaperLock):
    """The published lock with sealed updates, which hide them from attackers who know that lock.

    Example:
        >>> SealedPaperLock(KeyLockConfig(lock=["paper", "sealed"])).title
        'keylock:paper:first+sealed'

    """

    weakness = ""

    def __init__(self, config: KeyLockConfig) -> None:
        super().__init__(config)
        # the vault holds the published lock's state; only the silo opens what it sends
        self._wire = SealedLock(config.model_copy(update={"keep_history": False}))

    @property
    def title(self) -> str:
        """The name in reports."""
        return f"{super().title}+sealed"

    @property
    def server_reads(self) -> str:
        """As of lock: sealed."""
        return self._wire.server_reads

    @property
    def seals(self) -> bool:
        """True: the server gets sealed words."""
        return True

    @property
    def transforms_updates(self) -> bool:
        """True: updates are sealed before they leave the silo."""
        return True

    @property
    def credentials(self) -> Credentials | None:
        """As of lock: sealed."""
        return self._wire.credentials

    @property
    def tells_samples(self) -> bool:
        """As of lock: sealed."""
        return self._wire.tells_samples

    @property
    def tells_accuracy(self) -> bool:
        """As of lock: sealed."""
        return self._wire.tells_accuracy

    def share(self, secrets: JobSecrets) -> None:
        """As of lock: sealed."""
        self._wire.share(secrets)

    def lock_for_job(self, model: nn.Module) -> LockInfo:
        """Lock the model, and remember its public state, to check the server's first model."""
        info = super().lock_for_job(model)
        self._wire.remember(model)
        return info

    def enter_silo(self, model: nn.Module, *, silo: int) -> str:
        """Put a silo's private state into the model."""
        self._wire.enter_silo(model, silo=silo)
        return super().enter_silo(model, silo=silo)

    def seal(
        self, model: nn.Module, payload: Mapping[str, Tensor], *, samples: float
    ) -> Mapping[str, Tensor]:
        """As of lock: sealed."""
        return self._wire.seal(model, payload, samples=samples)

    def open(
        self, model: nn.Module, message: Mapping[str, Tensor], *, round_index: int
    ) -> Mapping[str, Tensor]:
        """As of lock: sealed."""
        return self._wire.open(model, message, round_index=round_index)

    def add_up(self, messages: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """As of lock: sealed."""
        return self._wire.add_up(messages)

    def rehearse(
        self,
        base: Mapping[str, Tensor],
        updates: Sequence[tuple[float, Mapping[str, Tensor]]],
    ) -> tuple[list[Mapping[str, Tensor]], Mapping[str, Tensor]]:
        """As of lock: sealed."""
        return self._wire.rehearse(base, updates)

    def finish(self, rounds: int, *, silo: int) -> None:
        """As of lock: sealed."""
        self._wire.finish(rounds, silo=silo)

    def load_round(
        self,
        model: nn.Module,
        state: Mapping[str, Tensor],
        *,
        round_index: int | None,
        source: Path,
    ) -> None:
        """Refused: the vault holds the published lock's state, and no keys that open a message.

        Raises:
            ConfigError: always.

        """
        raise ConfigError(
            f"{source}: under lock: [paper, sealed] a vault opens no message; leave --vault out, "
            "or audit a job of lock: sealed"
        )

    def baseline(
        self, model: nn.Module, protected: nn.Module
    ) -> tuple[nn.Module, Mapping[str, Tensor]]:
        """As of lock: sealed; the copy carries the published lock."""
        return self._wire.baseline(model, protected)

    def attacker_model(self, model: nn.Module) -> AttackerModel:
        """As of lock: sealed: the server reads nothing of the updates, whatever the model is."""
        return self._wire.attacker_model(model)
