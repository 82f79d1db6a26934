"""The interface of every lock on a model: locking, unlocking, exports and audits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from ..errors import ConfigError, LockError
from .description import LockInfo, LockIssue, ModelCheck
from .entropy import Uniform
from .private import is_locked

__all__ = ["ModelLock"]


class ModelLock(ABC):
    """A lock as the owner of a model uses it, without a job."""

    @staticmethod
    @abstractmethod
    def is_on(model: nn.Module) -> bool:
        """Whether the model carries a lock of this kind."""

    def check(self, model: nn.Module) -> ModelCheck:
        """What locking this model would do. The model is not changed."""
        return self._refused(model) or self._check(model)

    def lock(
        self, model: nn.Module, *, key: Tensor | None = None, uniform: Uniform | None = None
    ) -> LockInfo:
        """Lock a model in place; see `model.lock_model`."""
        refused = self._refused(model)
        if refused is not None:
            raise LockError(str(refused))
        self._lock(model, key=key, uniform=uniform)
        return self.info(model)

    @staticmethod
    def _refused(model: nn.Module) -> ModelCheck | None:
        """Reasons why no lock can be put on this model; None if there are none."""
        if is_locked(model):
            reason = "the model is locked already; unlock_model takes the lock out"
            return ModelCheck((LockIssue("", reason),))
        reason = "its shape is not known before the first forward pass (a lazy module)"
        lazy = tuple(
            LockIssue(name, reason)
            for name, module in model.named_modules()
            if isinstance(module, LazyModuleMixin)
        )
        return ModelCheck(lazy) if lazy else None

    @abstractmethod
    def _check(self, model: nn.Module) -> ModelCheck:
        """What locking a model would do that passed `_refused`."""

    @abstractmethod
    def _lock(self, model: nn.Module, *, key: Tensor | None, uniform: Uniform | None) -> None:
        """Lock in place a model that passed `check`."""

    @staticmethod
    @abstractmethod
    def info(model: nn.Module) -> LockInfo:
        """Describe the lock on the model."""

    @staticmethod
    @abstractmethod
    def unlock(model: nn.Module) -> None:
        """Remove the lock from the model."""

    @staticmethod
    @abstractmethod
    def private_tensors(model: nn.Module) -> dict[str, Tensor]:
        """Everything private in the model, name to tensor; not copies."""

    @classmethod
    def private_state(cls, model: nn.Module) -> dict[str, Tensor]:
        """Copy everything private in the model, name to tensor."""
        return {
            name: t.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, t in cls.private_tensors(model).items()
        }

    @staticmethod
    @abstractmethod
    def load_private(model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Load private state into a model that is locked in the same way.

        Raises:
            VaultError: the state belongs to another lock; the model is unchanged.

        """

    @staticmethod
    @abstractmethod
    def export(model: nn.Module) -> nn.Module:
        """A plain copy of the model that computes the same; see `model.export_model`."""

    @staticmethod
    @abstractmethod
    def secret_variables(model: nn.Module) -> dict[str, Tensor]:
        """The values in the model that an attacker does not know. Private."""

    def needs_vault(self, state: Mapping[str, Tensor]) -> bool:
        """Whether a silo's vault is needed to build a model from this state of the global one."""
        return True

    @abstractmethod
    def load_public(
        self,
        model: nn.Module,
        state: Mapping[str, Tensor],
        *,
        round_index: int | None,
        source: Path,
    ) -> None:
        """Load the global model into a locked model, as a silo of the job would.

        Args:
            model: locked, with the silo's private state.
            state: of the global model.
            round_index: the round whose average this is; None: the vault's last.
            source: where the state comes from, for messages.

        Raises:
            ConfigError: the state is not of this job or round, or no round can be named.

        """

    def load_round(
        self,
        model: nn.Module,
        state: Mapping[str, Tensor],
        *,
        round_index: int | None,
        source: Path,
    ) -> None:
        """For an audit: restore what a silo computed with when a round began.

        Args:
            model: locked, with the private state of that round from the silo's vault.
            state: what the server had sent.
            round_index: of the round; None for the model after the last round.
            source: the vault's file, for messages.

        Raises:
            ConfigError: the state is not of the vault's job.

        """
        model.load_state_dict(state)

    def check_fit(
        self,
        model: nn.Module,
        state: Mapping[str, Tensor],
        constants: Mapping[str, float],
        source: Path,
    ) -> None:
        """Check that a state fits the job's global model, by names, shapes and constants.

        Args:
            model: the job's, unlocked.
            state: of a checkpoint.
            constants: public names that are always sent as the same constant, with its value.
            source: where the state comes from, for messages.

        Raises:
            ConfigError: naming what differs.

        """
        own = model.state_dict()
        for name in own.keys() | state.keys():
            if name not in state:
                raise ConfigError(f"{source}: not of this model: it has no {name}")
            if name not in own:
                raise ConfigError(f"{source}: not of this model: the model has no {name}")
            if own[name].shape != state[name].shape:
                raise ConfigError(
                    f"{source}: not of this model: its {name} is {tuple(state[name].shape)}, the "
                    f"model's is {tuple(own[name].shape)}"
                )
        for name, value in constants.items():
            # the server's average of constants is off by rounding
            if not torch.allclose(state[name].double(), torch.tensor(value).double(), atol=1e-3):
                raise ConfigError(
                    f"{source}: its {name} is not {value:g}: it is not the global model of a job "
                    "that locks this layer; --config must be that of the job"
                )

    @staticmethod
    @abstractmethod
    def deployed(model: nn.Module, *, silo: int, round_index: int) -> tuple[str, str]:
        """What an exported model was made from, and what private data its file holds, in words.

        Args:
            model: locked, with the silo's private state and the global model.
            silo: index of the silo.
            round_index: the next round for the private state.

        """

    @abstractmethod
    def as_outsider(
        self, model: nn.Module, own: Callable[[], nn.Module], uniform: Uniform | None
    ) -> nn.Module:
        """The model of somebody who has a lock but not the silos' key.

        Args:
            model: the job's, unlocked, with the public state.
            own: makes a silo's locked copy of the model, with that silo's statistics.
            uniform: see `model.lock_model`.

        """
