"""What the key-locks have in common as a job's defense: their settings, and a silo's vault."""

from __future__ import annotations

from abc import abstractmethod

from torch import nn

from ..errors import ConfigError
from ..types import Agreement, Defense
from . import KeyLockConfig, Vault, plan
from .vault import Cipher

__all__ = ["Lock"]


class Lock(Defense):
    """The key-lock defense of arXiv 2305.04095, for `defense_type: keylock`.

    Args:
        config: the YAML's `keylock:` section.

    """

    HAND_OVER = 10.0
    """Seconds for which a rank waits until the one that had a silo before has released its
    vault."""

    def __init__(self, config: KeyLockConfig) -> None:
        self.config = config
        self._in_turn = False
        self._layout = ""
        self._cipher: Cipher | None = None
        self._vault: Vault | None = None

    @property
    def title(self) -> str:
        """How reports name it: "keylock:mixing:all"."""
        return self.config.title

    @property
    def then(self) -> str | None:
        """FedML's own defense that is to run on the locked updates."""
        return self.config.then

    @property
    def own_accuracy(self) -> bool:
        """Whether silos test under their own lock."""
        return self.config.own_accuracy

    @property
    def log_training(self) -> bool:
        """Whether what a silo's trainer logs, such as losses, leaves the silo."""
        return self.config.log_training

    def describe(self, model: nn.Module) -> Agreement:
        """Every public name, the locked layers, and the settings that must be everyone's."""
        state, planned = model.state_dict(), plan(model, self.config)
        # each silo's own affair; of the group's secret, all but whether there is one
        own = {"vault", "keep_history", "encrypt_vault", "own_accuracy", "log_training"}
        grouped = {"group_key": None if self.config.group_key is None else "the silos' own"}
        server = {"then"}
        return Agreement(
            shapes={name: tuple(tensor.shape) for name, tensor in state.items()},
            dtypes={name: tensor.dtype for name, tensor in state.items()},
            constants=planned.constants,
            layers=tuple(layer.layer for layer in planned.layers if layer.locked),
            settings=self.config.model_dump(mode="json", exclude=own | server) | grouped,
            aggregation=self.config.model_dump(mode="json", include=server),
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
        done = self._lock(model)
        return done if silo is None else f"{done}; {self.enter_silo(model, silo=silo)}"

    def begin_round(self, model: nn.Module, *, round_index: int) -> None:
        """Keep on disk what the round begins with, if wanted."""
        if self.config.keep_history:
            self._own_vault().keep(model, round_index=round_index)

    def end_round(self, model: nn.Module, *, round_index: int) -> bool:
        """Save the private state before anything is sent.

        Raises:
            VaultError: it cannot be saved.

        """
        vault = self._own_vault()
        vault.save(model, round_index=round_index + 1)
        if self._in_turn:  # the silo's next round may be another rank's
            vault.release()
            self._vault = None
        return True

    @abstractmethod
    def _lock(self, model: nn.Module) -> str:
        """Lock a model in place; say what was done."""

    def _claim(self, silo: int) -> Vault:
        """Be the only process that writes the silo's vault, which is the rank's own from now on.

        Now, and not when a round is trained that could not be saved. Another rank that had this
        silo in the last round may be about to release it.
        """
        vault = Vault(self.config.vault, silo, self._layout, self._cipher)
        vault.claim(wait=self.HAND_OVER if self._in_turn else 0.0)
        self._vault = vault
        return vault

    def _own_vault(self) -> Vault:
        if self._vault is None:
            raise ConfigError("the key-lock defense was asked to train before it had a silo's lock")
        return self._vault
