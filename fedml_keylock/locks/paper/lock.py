"""The key-lock on layers, as a job's defense."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import partial

from torch import Tensor, nn

from ...errors import LockError
from ...types import Surrogate
from .. import (
    KeyLockConfig,
    draw_effective,
    effective_state,
    load_private_state_dict,
    lock_model,
    private_state_dict,
    surrogate,
)
from ..protocol import Lock
from .gradients import Watch
from .module import locks

__all__ = ["PaperLock"]


class PaperLock(Lock):
    """Locks on layers: a private module of each silo's own, which is trained there and kept.

    Example:
        >>> PaperLock(KeyLockConfig(module="affine", targets="all")).title
        'keylock:affine:all'

    """

    def __init__(self, config: KeyLockConfig) -> None:
        super().__init__(config)
        self._plain: nn.Module | None = None
        self._watch: Watch | None = None
        self._locks: list[nn.Module] = []

    def _lock(self, model: nn.Module) -> str:
        # what a silo begins with whose vault is empty, where the model has another one's lock
        self._plain = deepcopy(model) if self._in_turn else None
        info = str(lock_model(model, self.config))
        self._locks = [lock for _, _, lock in locks(model)]
        return "; ".join(filter(None, [info, self.config.weakness]))

    def enter_silo(self, model: nn.Module, *, silo: int) -> str:
        """Put a silo's private state into a locked model: its vault's, or a fresh lock's.

        Only values change: an optimizer may hold the model's parameters already.

        Raises:
            VaultError: the vault cannot be read or written, or another process uses it.

        """
        vault = self._claim(silo)
        if vault.exists():
            return f"goes on from {vault.path}, round {vault.load(model)}"
        if self._plain is not None:  # what is in the model is another silo's
            fresh = deepcopy(self._plain)
            lock_model(fresh, self.config)
            load_private_state_dict(model, private_state_dict(fresh))
        vault.save(model, round_index=0)
        return f"private state in {vault.path}"

    def begin_round(self, model: nn.Module, *, round_index: int) -> None:
        """Start to watch the lock train."""
        self._watch = Watch(model)
        super().begin_round(model, round_index=round_index)

    def end_round(self, model: nn.Module, *, round_index: int) -> bool:
        """Check that the lock took part in training, and save it before anything is sent.

        Returns:
            Whether anything happened to the model: a gradient reached it, or it has changed.

        Raises:
            LockError: no gradient reached a lock, or the optimizer did not know its parameters.
            VaultError: the private state cannot be saved.

        """
        self._check_locks(model, round_index)
        trained = self._watch is None or self._watch.finish(round_index)
        self._watch = None
        super().end_round(model, round_index=round_index)
        return trained

    def surrogate(self, model: nn.Module) -> Surrogate:
        """The public model with gamma, beta and mixing as plain parameters, and no key."""
        revealed, names = surrogate(model, self.config)
        return Surrogate(revealed, names, partial(draw_effective, model, self.config))

    def twin(
        self, model: nn.Module, protected: nn.Module
    ) -> tuple[nn.Module, Mapping[str, Tensor]]:
        """A copy of a silo's locked model, and its gamma, beta and mixing: for its own audit."""
        copy = deepcopy(model)
        lock_model(copy, self.config)
        load_private_state_dict(copy, private_state_dict(protected))
        return copy, effective_state(copy)

    def _check_locks(self, model: nn.Module, round_index: int) -> None:
        """Refuse a model that the job's own code has unlocked, or unlocked and locked again."""
        if [id(lock) for _, _, lock in locks(model)] != [id(lock) for lock in self._locks]:
            raise LockError(
                f"the model was unlocked or locked anew before the end of round {round_index}, and "
                "what it learned so is not sent: the job's own code must call neither unlock_model "
                "nor lock_model"
            )
