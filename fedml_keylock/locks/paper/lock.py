"""`lock: paper`: the published key-lock module (arXiv 2305.04095), on chosen layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from ...errors import ConfigError, LockError
from ...tensors import deep_copy
from ...types import AttackerModel
from ..config import KeyLockConfig
from ..description import LockInfo, ModelCheck
from ..entropy import Uniform, secret_uniform
from ..protocol import Lock
from . import private_state
from .attach import attach, detach, info_of, is_statistic
from .attacker_model import attacker_model, draw_gammas_and_betas, gammas_and_betas
from .export.folding import fold
from .gradients import Watch
from .module import locks
from .placement import check_layers

__all__ = ["PaperLock"]


class PaperLock(Lock):
    """Locks on layers: each silo trains and keeps a private module of its own.

    Example:
        >>> PaperLock(KeyLockConfig(lock="paper", layers=["stem", "head.*"], chained=True)).title
        'keylock:paper:stem,head.*:chained'

    """

    weakness: ClassVar[str] = (
        "lock: paper does not withstand an attacker who knows of it, as the README shows; use "
        "lock: sealed, the default, or [paper, sealed]"
    )

    def __init__(self, config: KeyLockConfig) -> None:
        super().__init__(config)
        self._plain: nn.Module | None = None
        self._watch: Watch | None = None
        self._locks: list[nn.Module] = []

    @property
    def title(self) -> str:
        """The name in reports: "keylock:paper:first"."""
        layers = self.config.layers
        named = layers if isinstance(layers, str) else ",".join(layers)
        return ":".join(["keylock", "paper", named] + ["chained"] * self.config.chained)

    @property
    def server_reads(self) -> str:
        """All that is not the silo's own."""
        return "every silo's update but its locks, which holds off only who does not know of them"

    # on a model

    @staticmethod
    def is_on(model: nn.Module) -> bool:
        """Whether any layer of the model carries a lock."""
        return any(locks(model))

    def _check(self, model: nn.Module) -> ModelCheck:
        return check_layers(model, self.config)

    def _lock(self, model: nn.Module, *, key: Tensor | None, uniform: Uniform | None) -> None:
        attach(model, self.config, key=key, uniform=uniform or secret_uniform)

    @staticmethod
    def info(model: nn.Module) -> LockInfo:
        """Describe the locked layers, and how many channels are dead."""
        return info_of(model)

    @staticmethod
    def unlock(model: nn.Module) -> None:
        """Remove the locks from their layers."""
        detach(model)

    @staticmethod
    def private_tensors(model: nn.Module) -> dict[str, Tensor]:
        """The locks' own tensors, and the running statistics that are not shared."""
        return private_state.private_tensors(model)

    @staticmethod
    def load_private(model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Put private state back; see `Lock.load_private`."""
        private_state.load_private(model, state)

    @staticmethod
    def export(model: nn.Module) -> nn.Module:
        """A copy with every lock folded into its layer."""
        return fold(model)

    @staticmethod
    def secret_variables(model: nn.Module) -> dict[str, Tensor]:
        """Gamma and beta of every lock: the model depends on the key only through them."""
        return gammas_and_betas(model)

    @staticmethod
    def load_public(
        model: nn.Module, state: Mapping[str, Tensor], *, round_index: int | None, source: Path
    ) -> None:
        """Load the global model beside the lock; see `Lock.load_public`."""
        if round_index is not None:
            raise ConfigError(
                "--round: of lock: rotated only; under lock: paper the vault has one lock"
            )
        model.load_state_dict(state)

    @staticmethod
    def deployed(model: nn.Module, *, silo: int, round_index: int) -> tuple[str, str]:
        """Name the global model's round and the silo whose lock it has."""
        return f"silo {silo}'s lock before round {round_index}", f"silo {silo}'s private lock"

    def _redraw(self, model: nn.Module, uniform: Uniform | None) -> None:
        """Draw new values for the locks; the silo's statistics stay."""
        own = self.private_state(model)
        fresh = deep_copy(model)
        detach(fresh)
        self.lock(fresh, uniform=uniform)
        statistics = {name: tensor for name, tensor in own.items() if is_statistic(name)}
        self.load_private(model, self.private_state(fresh) | statistics)

    def as_outsider(
        self, model: nn.Module, own: Callable[[], nn.Module], uniform: Uniform | None
    ) -> nn.Module:
        """The model with a silo's statistics and a fresh lock: only its key is wrong."""
        candidate = own()
        self._redraw(candidate, uniform)
        return candidate

    # as a job's defense

    def lock_for_job(self, model: nn.Module) -> LockInfo:
        """Lock the job's model, and remember the locks to notice if they are replaced."""
        # the start for a silo with an empty vault, when the model holds another silo's lock
        self._plain = deep_copy(model) if self._in_turn else None
        info = self.lock(model)
        self._locks = [lock for _, _, lock in locks(model)]
        return info

    def enter_silo(self, model: nn.Module, *, silo: int) -> str:
        """Load a silo's private state into a locked model: from its vault, or of a fresh lock.

        Only values change: an optimizer may already hold the model's parameters.

        Raises:
            VaultError: the vault cannot be read or written, or another process uses it.

        """
        vault = self._claim(silo)
        if vault.exists():
            state, round_index = vault.load()
            self.load_private(model, state)
            return f"goes on from {vault.path}, round {round_index}"
        if self._plain is not None:  # the model holds another silo's lock
            fresh = deep_copy(self._plain)
            self.lock(fresh)
            self.load_private(model, self.private_state(fresh))
        vault.save(self.private_state(model), round_index=0)
        return f"private state in {vault.path}"

    def begin_round(self, model: nn.Module, *, round_index: int) -> None:
        """Start to watch the lock's training."""
        self._watch = Watch(model)
        super().begin_round(model, round_index=round_index)

    def end_round(self, model: nn.Module, *, round_index: int) -> bool:
        """Check that the lock took part in training, and save it before anything is sent.

        Returns:
            Whether the model trained: a gradient reached it, or it has changed.

        Raises:
            LockError: no gradient reached a lock, or its parameters are not in the optimizer.
            VaultError: the private state cannot be saved.

        """
        self._check_locks(model, round_index)
        trained = self._watch is None or self._watch.finish(round_index)
        self._watch = None
        super().end_round(model, round_index=round_index)
        return trained

    def attacker_model(self, model: nn.Module) -> AttackerModel:
        """The public model with gamma and beta as plain parameters, without a key."""
        revealed, names = attacker_model(model, self.config)
        return AttackerModel(revealed, names, partial(draw_gammas_and_betas, model, self.config))

    def baseline(
        self, model: nn.Module, protected: nn.Module
    ) -> tuple[nn.Module, Mapping[str, Tensor]]:
        """A copy of the silo's locked model, and its gamma and beta: for the silo's own audit."""
        copy = deep_copy(model)
        self.lock(copy)
        self.load_private(copy, self.private_state(protected))
        return copy, gammas_and_betas(copy)

    def _check_locks(self, model: nn.Module, round_index: int) -> None:
        """Refuse a model that the job's code has unlocked, or unlocked and locked again."""
        if [id(lock) for _, _, lock in locks(model)] != [id(lock) for lock in self._locks]:
            raise LockError(
                f"the model was unlocked or locked anew before the end of round {round_index}, and "
                "what it learned so is not sent: the job's own code must call neither unlock_model "
                "nor lock_model"
            )
