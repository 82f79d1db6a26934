"""The key-lock on a model's whole state, as a job's defense."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy, deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import ConfigError, HostError, LockError, UpdateRefused
from ..keylock import (
    Vault,
    effective_state,
    load_private_state_dict,
    lock_info,
    plan,
    private_state_dict,
    surrogate,
    unlock_model,
)
from ..keylock.group import group_secret
from ..keylock.vault import Cipher
from ..keylock.whole import (
    NONE,
    Masks,
    StateLock,
    WholeDisguise,
    lock_of,
    lock_state,
    outgrown,
    scales_of,
)
from ..keylock.whole.mask import MOST
from ..keylock.whole.turns import digest
from ..types import Agreement, Surrogate
from .layers import KeyLockDefense

__all__ = ["WholeDefense"]

COMPARED = ("geo_median", "krum", "multikrum", "rfa")
"""FedML's own defenses that use nothing of updates but how far they are from one another: a turn
that is the same for all leaves that as it is."""


class WholeDefense(KeyLockDefense):
    """`module: whole`: the job trains as without a defense, and what silos send is turned.

    The key is one for the whole group and changes by itself from job to job and round to round, so
    that vaults are written, for `export` and audits, and not gone on from.

    Example:
        >>> WholeDefense({"module": "whole"}).title
        'keylock:whole:all'

    """

    turns_state = True
    """Whether a state that is sent has nothing in common with the one that was received."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self._in_turn = False
        if self.config.then not in (None, *COMPARED):
            raise ConfigError(
                f"keylock.then: {self.config.then!r} does not run under module: whole, whose "
                "states can be compared with one another only; use one of "
                f"{', '.join(COMPARED)}, or preset: strong"
            )
        self._secret: bytes | None = None
        self._masks, self._samples = NONE, 0
        self._job = b""
        self._in_job = False
        self._scales: dict[str, float] = {}
        self._sent: tuple[int, bytes] | None = None

    @property
    def needs_secret(self) -> bool:
        """Whether the silos must agree on a secret among themselves: no file has one."""
        return self.config.group_key is None

    @property
    def wants_pairs(self) -> bool:
        """Whether each two silos are to have a secret for masks, if they can agree on one."""
        return self.config.mask and self.config.then is None

    def share(self, secret: bytes, masks: Masks = NONE, *, samples: int = 0) -> None:
        """Take what the silos have agreed on, before the first model comes.

        Args:
            secret: of all silos, new in every job; beside that of the file, if there is one, which
                who stood between the silos does not have.
            masks: this silo's.
            samples: how many it has: the masks cancel for no other number.

        """
        self._secret = (self._secret or b"") + secret
        self._masks, self._samples = masks, samples

    def call_job(self, number: bytes) -> None:
        """Take what the server calls this job, before the first model comes.

        It is no secret. Where the secret is a file's, jobs that start from the same model would
        have the same key without it.
        """
        self._job = number

    def protect(self, model: nn.Module, *, silo: int | None, agreement: Agreement) -> str:
        """Lock the model; see `KeyLockDefense.protect`."""
        self._cipher = Cipher.from_environment() if self.config.encrypt_vault else None
        self._layout = agreement.layout
        self._in_turn, self._in_job = silo is None, True
        if self._secret is None and self.config.group_key is not None:
            self._secret = group_secret(self.config.group_key)
        plan(model, self.config)
        lock_state(model)
        info = str(lock_info(model))
        return info if silo is None else f"{info}; {self.enter_silo(model, silo=silo)}"

    def enter_silo(self, model: nn.Module, *, silo: int) -> str:
        """Take the silo's vault, which `end_round` writes; what is in it belongs to another job."""
        self._vault = self._claimed(silo)
        if self._vault.exists():  # another model's or lock's is refused, and not written over
            now = private_state_dict(model)
            self._vault.load(model)
            load_private_state_dict(model, now)
        return f"private state in {self._vault.path}"

    def receive(self, model: nn.Module, state: Mapping[str, Tensor], *, round_index: int) -> None:
        """Take the key of the first model, and turn an average back as its silos had turned it."""
        lock = _lock(model)
        if round_index < 0:
            if self._secret is None:
                raise HostError("the silos have no secret to lock with: name keylock.group_key")
            lock.begin(state, self._secret + self._job)
            lock.masks = self._masks
        if lock.masks != NONE:
            _check_precision(model)
            self._scales = scales_of(lock.parts, state)
        lock.enter(round_index)

    def begin_round(self, model: nn.Module, *, round_index: int) -> None:
        """From now on the state is shown under this round's turn."""
        if self.config.keep_history:
            self._open_vault().keep(model, round_index=round_index)
        _lock(model).enter(round_index)

    def end_round(self, model: nn.Module, *, round_index: int) -> bool:
        """Save what opens this round's states."""
        lock = _lock(model)
        if int(lock.round) != round_index:
            raise LockError(
                f"the model was locked anew before the end of round {round_index}: the job's own "
                "code must call neither unlock_model nor lock_model"
            )
        lock.remember(model)
        vault = self._open_vault()
        vault.save(model, round_index=round_index + 1)
        if self._in_turn:  # the silo's next round may be another rank's
            vault.release()
            self._vault = None
        return True

    def release(
        self, model: nn.Module, state: Mapping[str, Tensor], *, samples: float
    ) -> Mapping[str, Tensor]:
        """Only what the lock itself has made in this round, bit by bit, and under a mask."""
        lock = _lock(model)
        if not lock.has_made(state):
            raise UpdateRefused(
                "what it would send was not made by the lock; under module: whole a silo sends "
                "model.state_dict(), whole and as it is, of the model that FedML gives the "
                "trainer: no gradients, no differences, no copies of parameters"
            )
        if lock.masks == NONE:
            return state
        if samples != self._samples:
            raise UpdateRefused(
                f"it says that it has {samples:g} samples and said {self._samples} when the job "
                "began, so that the silos' masks would not cancel: leave the number as it is, or "
                "set keylock: {mask: false}"
            )
        if part := outgrown(lock.parts, state, self._scales):
            raise UpdateRefused(
                f"{part} has become more than {MOST:g} times as large in this round as its mask is "
                "made for: give the model inputs of a mean near 0 and a deviation near 1, or set "
                "keylock: {mask: false}"
            )
        turns, sending = lock.turns, (int(lock.round), digest(state))
        if self._sent is not None and self._sent[0] >= sending[0] and self._sent != sending:
            raise UpdateRefused(
                "it would send a second state in one round, and the difference of two has no mask: "
                "send one, or set keylock: {mask: false}"
            )
        self._sent = sending
        masked = lock.masks.masked(state, lock.parts, self._scales, turns.key, turns.round_index)
        # of the same kind, as FedML takes a plain dict for one state a silo
        made: Any = copy(state)
        made.update(masked)
        return cast("Mapping[str, Tensor]", made)

    def surrogate(self, model: nn.Module) -> Surrogate:
        """The public model: nothing of it is private but how its state is turned."""
        # outside of a job that of the smallest in which there is something to hide from a silo
        peers = 2 * self.wants_pairs if not self._in_job else len(self._masks.pairs)
        disguise = WholeDisguise.of(model, peers=peers)
        return Surrogate(*surrogate(model, self.config), _nothing, disguise)

    def twin(
        self, model: nn.Module, protected: nn.Module
    ) -> tuple[nn.Module, Mapping[str, Tensor]]:
        """The model with the weights that the silo computes with, and how states are opened."""
        plain = deepcopy(protected)
        unlock_model(plain)
        return plain, effective_state(protected)

    def _claimed(self, silo: int) -> Vault:
        vault = Vault(Path(self.config.vault), silo, self._layout, self._cipher)
        vault.claim(wait=self.HAND_OVER if self._in_turn else 0.0)
        return vault


def _nothing(_count: int, _generator: torch.Generator) -> dict[str, Tensor]:
    """What there is to draw of unknowns in what silos compute."""
    return {}


def _check_precision(model: nn.Module) -> None:
    """Refuse masks where the numbers that are sent have too few digits for them."""
    for name, parameter in (*model.named_parameters(), *model.named_buffers()):
        if parameter.is_floating_point() and torch.finfo(parameter.dtype).bits < 32:
            raise ConfigError(
                f"keylock.mask: {name} is {parameter.dtype}, too coarse to be masked: train in "
                "float32 (autocast may do the rest), or set keylock: {mask: false}"
            )


def _lock(model: nn.Module) -> StateLock:
    lock = lock_of(model)
    if lock is None:
        raise ConfigError("the key-lock defense was asked to train a model that is not locked")
    return lock
