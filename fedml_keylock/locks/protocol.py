"""The interface of every lock as the defense of a FedML job, on top of that on a model."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from ..defense import Defense
from ..disk import append_private
from ..errors import ConfigError, LockError
from ..tensors import infinite_in
from ..types import Agreement
from .config import KeyLockConfig
from .description import LockInfo, ModelCheck
from .on_model import ModelLock
from .vault import Cipher, Vault

__all__ = ["Lock"]


class Lock(ModelLock, Defense):
    """One kind of lock under one configuration.

    Each lock has a folder of this package, and a row in `model.LOCKS`.

    Args:
        config: the YAML's `keylock:` section.

    """

    HAND_OVER = 10.0
    """Seconds that a rank waits for the silo's previous rank to release its vault."""

    weakness: ClassVar[str] = ""
    """The known weakness of this lock, in one line; empty if none is known."""

    def __init__(self, config: KeyLockConfig) -> None:
        self.config = config
        self._in_turn = False
        self._layout = ""
        self._cipher: Cipher | None = None
        self._vault: Vault | None = None

    @property
    def robust_aggregation(self) -> str | None:
        """FedML's own defense to run on the locked updates."""
        return self.config.robust_aggregation

    @property
    def own_accuracy(self) -> bool:
        """Whether silos test models under their own lock."""
        return self.config.own_accuracy

    @property
    def log_training(self) -> bool:
        """Whether what a silo's trainer logs, such as losses, leaves the silo."""
        return self.config.log_training

    def plan(self, model: nn.Module) -> ModelCheck:
        """Like `check`, for a model that must be lockable.

        Raises:
            LockError: naming every reason why it cannot be locked, on one line.

        """
        checked = self.check(model)
        if checked.issues:
            raise LockError(str(checked))
        return checked

    def noised_numbers(self, model: nn.Module) -> int:
        """How many numbers of a model are clipped and noised; 0 without noise."""
        return 0

    def describe(self, model: nn.Module) -> Agreement:
        """Every public name, the locked layers, and the settings that all ranks must share."""
        planned = self.plan(model)
        # a module's state may hold other things, which a job does not send
        state = {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}
        # settings of each silo alone; of the group's secret only whether there is one
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
            infinite=frozenset(infinite_in(state)),
        )

    def protect(self, model: nn.Module, *, silo: int | None, agreement: Agreement) -> str:
        """Lock the model, with the silo's private state if its vault has one.

        Args:
            model: the job's.
            silo: index of the silo; None in a rank that serves many in turn, which calls
                `enter_silo` before every round.
            agreement: what `describe` returned for it.

        Raises:
            ConfigError: the vault should be encrypted, and there is no passphrase.
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
            VaultError: the file cannot be written.

        """
        append_private(self.config.vault / f"silo-{silo}.log", line)

    @abstractmethod
    def lock_for_job(self, model: nn.Module) -> LockInfo:
        """Lock the job's model, once, before it has a silo's private state."""

    def begin_round(self, model: nn.Module, *, round_index: int) -> None:
        """Save what the round begins with, if `keep_history` is set."""
        if self.config.keep_history:
            self._own_vault().keep(self.private_state(model), round_index=round_index)

    def end_round(self, model: nn.Module, *, round_index: int) -> bool:
        """Save the private state before anything is sent.

        Raises:
            VaultError: the state cannot be saved.

        """
        self._own_vault().save(self.private_state(model), round_index=round_index + 1)
        self._release_in_turn()
        return True

    def _claim(self, silo: int) -> Vault:
        """Claim the silo's vault, so that no other process writes it.

        This comes before training, so that no round is trained in vain. Another rank that had this
        silo in the last round may be about to release it.
        """
        vault = Vault(self.config.vault, silo, self._layout, self._cipher)
        vault.claim(wait=self.HAND_OVER if self._in_turn else 0.0)
        self._vault = vault
        return vault

    def _release_in_turn(self) -> None:
        """Release the vault of a silo that another rank may train next."""
        if self._in_turn and self._vault is not None:
            self._vault.release()
            self._vault = None

    def _own_vault(self) -> Vault:
        if self._vault is None:
            raise ConfigError("the key-lock defense was asked to train before it had a silo's lock")
        return self._vault
