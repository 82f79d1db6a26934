"""What every lock is asked: on a model, and as the defense of a FedML job."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from ..errors import ConfigError, LockError
from ..types import Agreement, Defense
from .config import KeyLockConfig
from .description import LockInfo, LockIssue, ModelCheck
from .entropy import Uniform
from .private import is_locked
from .vault import Cipher, Vault
from .vault.disk import append_private

__all__ = ["Lock"]


class Lock(Defense):
    """One kind of lock under one configuration.

    Beside what a job asks of every defense, it is asked what `lock_model` and its sisters do. A
    lock is a folder of this package, and one row of `model.LOCKS`.

    Args:
        config: the YAML's `keylock:` section.

    """

    HAND_OVER = 10.0
    """Seconds for which a rank waits until the one that had a silo before has released its
    vault."""

    weakness: ClassVar[str] = ""
    """What a user should know of this lock, in one line; empty where nothing is known."""

    def __init__(self, config: KeyLockConfig) -> None:
        self.config = config
        self._in_turn = False
        self._layout = ""
        self._cipher: Cipher | None = None
        self._vault: Vault | None = None

    # on a model

    @staticmethod
    @abstractmethod
    def is_on(model: nn.Module) -> bool:
        """Whether the model carries a lock of this kind."""

    def check(self, model: nn.Module) -> ModelCheck:
        """What locking this model would do. Nothing is changed."""
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
        """What no lock can be put on; None where nothing stands against one."""
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
        """What locking a model would do that no lock refuses."""

    @abstractmethod
    def _lock(self, model: nn.Module, *, key: Tensor | None, uniform: Uniform | None) -> None:
        """Lock such a model in place."""

    @staticmethod
    @abstractmethod
    def info(model: nn.Module) -> LockInfo:
        """What the lock on the model is."""

    @staticmethod
    @abstractmethod
    def unlock(model: nn.Module) -> None:
        """Take the lock out of the model."""

    @staticmethod
    @abstractmethod
    def private_tensors(model: nn.Module) -> dict[str, Tensor]:
        """Everything private in the model, name to tensor; not copies."""

    @classmethod
    def private_state(cls, model: nn.Module) -> dict[str, Tensor]:
        """A copy of everything private in the model, name to tensor."""
        return {
            name: t.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, t in cls.private_tensors(model).items()
        }

    @staticmethod
    @abstractmethod
    def load_private(model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Put private state back into a model that is locked in the same way.

        Raises:
            VaultError: the state is that of another lock; the model is unchanged.

        """

    @staticmethod
    @abstractmethod
    def export(model: nn.Module) -> nn.Module:
        """A plain copy of the model that computes the same; see `model.export_model`."""

    @staticmethod
    @abstractmethod
    def secret_variables(model: nn.Module) -> dict[str, Tensor]:
        """The values, in the model, of what an attacker does not know. Private."""

    def needs_vault(self, state: Mapping[str, Tensor]) -> bool:
        """Whether a silo's vault is needed to make a model of this state of the global one."""
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
            round_index: of the round whose average it is; None: the vault's last.
            source: where the state is from, for messages.

        Raises:
            ConfigError: it is not of this job or round, or no round is to be named.

        """

    def load_round(
        self,
        model: nn.Module,
        state: Mapping[str, Tensor],
        *,
        round_index: int | None,
        source: Path,
    ) -> None:
        """For an audit: make of a locked model what its silo computed with when a round began.

        Args:
            model: locked, with the private state that the silo's vault has of the round.
            state: that the server had sent.
            round_index: of the round; None for the model that training ended with.
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
        """Check that a state is that of the job's global model, by names, shapes and constants.

        Args:
            model: the job's, unlocked.
            state: of a checkpoint.
            constants: public names that are always sent as the same constant.
            source: where the state is from, for messages.

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
            # the server's average of constants is off by its rounding
            if not torch.allclose(state[name].double(), torch.tensor(value).double(), atol=1e-3):
                raise ConfigError(
                    f"{source}: its {name} is not {value:g}: it is not the global model of a job "
                    "that locks this layer; --config must be that of the job"
                )

    @staticmethod
    @abstractmethod
    def deployed(model: nn.Module, *, silo: int, round_index: int) -> tuple[str, str]:
        """What a silo's exported model was made of, and what private its file holds, in words.

        Args:
            model: locked, with the silo's private state and the global model.
            silo: index of the silo.
            round_index: the round that the private state is to be trained in next.

        """

    @abstractmethod
    def as_outsider(
        self, model: nn.Module, own: Callable[[], nn.Module], uniform: Uniform | None
    ) -> nn.Module:
        """The model as somebody computes with it who has a lock, and not the silos' key.

        Args:
            model: the job's, unlocked, with the public state.
            own: makes a silo's locked copy of it, with that silo's statistics.
            uniform: see `model.lock_model`.

        """

    # as a job's defense

    @property
    def robust_aggregation(self) -> str | None:
        """FedML's own defense that is to run on the locked updates."""
        return self.config.robust_aggregation

    @property
    def own_accuracy(self) -> bool:
        """Whether silos test under their own lock."""
        return self.config.own_accuracy

    @property
    def log_training(self) -> bool:
        """Whether what a silo's trainer logs, such as losses, leaves the silo."""
        return self.config.log_training

    def plan(self, model: nn.Module) -> ModelCheck:
        """`check`, for a model that must be lockable.

        Raises:
            LockError: with every reason against it, on one line.

        """
        checked = self.check(model)
        if checked.issues:
            raise LockError(str(checked))
        return checked

    def describe(self, model: nn.Module) -> Agreement:
        """Every public name, the locked layers, and the settings that must be everyone's."""
        state, planned = model.state_dict(), self.plan(model)
        # each silo's own affair; of the group's secret, all but whether there is one
        own = {"vault", "keep_history", "encrypt_vault", "own_accuracy", "log_training"}
        own |= {"checkpoint", "save_model", "first_model", "roster", "identity", "link_key"}
        grouped = {"group_key": None if self.config.group_key is None else "the silos' own"}
        server = {"robust_aggregation"}
        return Agreement(
            shapes={name: tuple(tensor.shape) for name, tensor in state.items()},
            dtypes={name: tensor.dtype for name, tensor in state.items()},
            constants=planned.constants,
            layers=tuple(layer.layer for layer in planned.layers if layer.locked),
            settings=self.config.model_dump(mode="json", exclude=own | server) | grouped,
            aggregation=self.config.model_dump(mode="json", include=server),
            sealed=self.seals,
        )

    def protect(self, model: nn.Module, *, silo: int | None, agreement: Agreement) -> str:
        """Lock the model, with the silo's own private state if its vault has any.

        Args:
            model: the job's.
            silo: index of the silo; None in a rank that serves many in turn, where `enter_silo` is
                to follow before every round.
            agreement: what `describe` said of it.

        Raises:
            ConfigError: the vault is to be encrypted, and there is no passphrase.
            LockError: the model cannot be locked.
            VaultError: the vault cannot be read or written, or another process uses it.

        """
        self._cipher = Cipher.from_environment() if self.config.encrypt_vault else None
        self._layout, self._in_turn = agreement.layout, silo is None
        done = "; ".join(filter(None, [str(self.lock_for_job(model)), self.weakness]))
        return done if silo is None else f"{done}; {self.enter_silo(model, silo=silo)}"

    def note(self, line: str, *, silo: int) -> None:
        """Append a line to silo-N.log in the vault's folder, for its owner only.

        Raises:
            VaultError: it cannot be written.

        """
        append_private(self.config.vault / f"silo-{silo}.log", line)

    @abstractmethod
    def lock_for_job(self, model: nn.Module) -> LockInfo:
        """Lock the job's model, once, before it has a silo's private state."""

    def begin_round(self, model: nn.Module, *, round_index: int) -> None:
        """Keep on disk what the round begins with, if wanted."""
        if self.config.keep_history:
            self._own_vault().keep(self.private_state(model), round_index=round_index)

    def end_round(self, model: nn.Module, *, round_index: int) -> bool:
        """Save the private state before anything is sent.

        Raises:
            VaultError: it cannot be saved.

        """
        self._own_vault().save(self.private_state(model), round_index=round_index + 1)
        self._release_in_turn()
        return True

    def _claim(self, silo: int) -> Vault:
        """Be the only process that writes the silo's vault, which is the rank's own from now on.

        Now, and not when a round is trained that could not be saved. Another rank that had this
        silo in the last round may be about to release it.
        """
        vault = Vault(self.config.vault, silo, self._layout, self._cipher)
        vault.claim(wait=self.HAND_OVER if self._in_turn else 0.0)
        self._vault = vault
        return vault

    def _release_in_turn(self) -> None:
        """Release the vault of a silo whose next round may be another rank's."""
        if self._in_turn and self._vault is not None:
            self._vault.release()
            self._vault = None

    def _own_vault(self) -> Vault:
        if self._vault is None:
            raise ConfigError("the key-lock defense was asked to train before it had a silo's lock")
        return self._vault
