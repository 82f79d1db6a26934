"""The key-lock on layers, as a job's defense."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..errors import ConfigError, LockError
from ..keylock import (
    KeyLockConfig,
    Vault,
    draw_effective,
    effective_state,
    load_private_state_dict,
    lock_model,
    plan,
    private_state_dict,
    redraw_lock,
    surrogate,
)
from ..keylock.module import every_lock
from ..keylock.vault import Cipher
from ..keylock.watch import Watch
from ..types import Agreement, Surrogate

__all__ = ["KeyLockDefense"]


class KeyLockDefense:
    """The key-lock defense of arXiv 2305.04095, for `defense_type: keylock`.

    Args:
        settings: the YAML's `keylock:` section.

    Raises:
        ConfigError: naming the field.

    Example:
        >>> KeyLockDefense({"module": "affine", "targets": "all"}).config.targets
        'all'

    """

    HAND_OVER = 10.0
    """Seconds for which a rank waits until the one that had a silo before has released its
    vault."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.config = KeyLockConfig.from_mapping(settings)
        self._vault: Vault | None = None
        self._cipher: Cipher | None = None
        self._layout = ""
        self._plain: nn.Module | None = None
        self._watch: Watch | None = None
        self._locks: list[nn.Module] = []

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

    def describe(self, model: nn.Module) -> Agreement:
        """Every public name, the locked layers, and the settings that must be everyone's."""
        state, planned = model.state_dict(), plan(model, self.config)
        # each silo's own affair; of the group's secret, all but whether there is one
        own = {"vault", "keep_history", "encrypt_vault", "own_accuracy"}
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
        self._layout = agreement.layout
        self._plain = deepcopy(model) if silo is None else None
        info = "; ".join(filter(None, [str(lock_model(model, self.config)), self.config.weakness]))
        self._locks = [lock for _, _, lock in every_lock(model)]
        return info if silo is None else f"{info}; {self.enter_silo(model, silo=silo)}"

    def enter_silo(self, model: nn.Module, *, silo: int) -> str:
        """Put a silo's private state into a locked model: its vault's, or a fresh lock's.

        Only values change: an optimizer may hold the model's parameters already.

        Raises:
            VaultError: the vault cannot be read or written, or another process uses it.

        """
        vault = Vault(self.config.vault, silo, self._layout, self._cipher)
        # now, and not when a round is trained that could not be saved; another rank that had this
        # silo in the last round may be about to release it
        vault.claim(wait=0.0 if self._plain is None else self.HAND_OVER)
        self._vault = vault
        if vault.exists():
            return f"goes on from {vault.path}, round {vault.load(model)}"
        if self._plain is not None:  # what is in the model is another silo's
            fresh = deepcopy(self._plain)
            lock_model(fresh, self.config)
            load_private_state_dict(model, private_state_dict(fresh))
        vault.save(model, round_index=0)
        return f"private state in {vault.path}"

    def receive(self, model: nn.Module, state: Mapping[str, Tensor], *, round_index: int) -> None:
        """Nothing: under locks on layers what comes in is the model's state as it is."""

    def release(
        self, model: nn.Module, state: Mapping[str, Tensor], *, samples: float
    ) -> Mapping[str, Tensor]:
        """The state as it is."""
        return state

    def begin_round(self, model: nn.Module, *, round_index: int) -> None:
        """Start to watch the lock train; draw it anew, and keep its state on disk, if wanted."""
        every = self.config.rotate_every
        if every is not None and round_index and round_index % every == 0:
            redraw_lock(model, self.config)
        self._watch = Watch(model)
        if self.config.keep_history:
            self._open_vault().keep(model, round_index=round_index)

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
        vault = self._open_vault()
        vault.save(model, round_index=round_index + 1)
        if self._plain is not None:  # the silo's next round may be another rank's
            vault.release()
            self._vault = None
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
        if [id(lock) for _, _, lock in every_lock(model)] != [id(lock) for lock in self._locks]:
            raise LockError(
                f"the model was unlocked or locked anew before the end of round {round_index}, and "
                "what it learned so is not sent: the job's own code must call neither unlock_model "
                "nor lock_model"
            )

    def _open_vault(self) -> Vault:
        if self._vault is None:
            raise ConfigError("the key-lock defense was asked to train before it had a silo's lock")
        return self._vault
