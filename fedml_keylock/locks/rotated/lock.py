"""The key-lock on a model's whole state, as a job's defense."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy, deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...errors import ConfigError, HostError, LockError, UpdateRefused
from ...types import SharesSecret, Surrogate
from .. import (
    KeyLockConfig,
    effective_state,
    load_private_state_dict,
    lock_info,
    plan,
    private_state_dict,
    surrogate,
    unlock_model,
)
from ..group_key import group_secret
from ..protocol import Lock
from . import NONE, Masks, StateLock, RotationTransform, lock_of, lock_state, outgrown, scales_of
from .mask import MOST
from .turns import PARAMETERS

__all__ = ["RotatedLock"]


GROWN = 4.0
"""How many times as large as what a silo sent an average may be: no average of states is larger
than the largest of them, and masks that have not cancelled are a thousand times wider."""


class RotatedLock(Lock, SharesSecret):
    """`module: whole`: the job trains as without a defense, and what silos send is turned.

    The key is one for the whole group and changes by itself from job to job and round to round, so
    that vaults are written, for `export` and audits, and not gone on from.

    Example:
        >>> RotatedLock(KeyLockConfig()).title
        'keylock:whole:all'

    """

    def __init__(self, config: KeyLockConfig) -> None:
        super().__init__(config)
        self._lock_of_job: StateLock | None = None
        self._file, self._agreed = b"", b""
        self._masks, self._samples = NONE, 0
        self._job = b""
        self._scales: dict[str, float] = {}
        self._size: float | None = None
        self._integers: dict[str, Tensor] = {}
        self._sent: tuple[int, bytes, dict[str, float]] | None = None

    @property
    def transforms_updates(self) -> bool:
        """It does."""
        return True

    @property
    def needs_secret(self) -> bool:
        """Whether the silos must agree on a secret among themselves: no file has one."""
        return self.config.group_key is None

    @property
    def wants_pairs(self) -> bool:
        """Whether each two silos are to have a secret for masks, if they can agree on one."""
        return self.config.mask

    def share(
        self,
        secret: bytes,
        *,
        silo: int = 0,
        pairs: Mapping[int, bytes] | None = None,
        samples: Mapping[int, int] | None = None,
    ) -> None:
        """Take what the silos have agreed on, before the first model comes; see `SharesSecret`.

        The secret is beside that of the file, if there is one, which who stood between the silos
        does not have. The masks cancel for no other numbers of samples.
        """
        self._agreed = secret
        self._masks, self._samples = NONE, 0
        if pairs and samples:
            self._masks, self._samples = Masks.of(silo, pairs, samples), samples[silo]

    def call_job(self, number: bytes) -> None:
        """Take what the server calls this job, before the first model comes.

        It is no secret. Where the secret is a file's, jobs that start from the same model would
        have the same key without it.
        """
        self._job = number

    def _lock(self, model: nn.Module) -> str:
        if self.config.group_key is not None:
            self._file = group_secret(self.config.group_key)
        plan(model, self.config)
        self._lock_of_job = lock_state(model)
        return str(lock_info(model))

    def enter_silo(self, model: nn.Module, *, silo: int) -> str:
        """Take the silo's vault, which `end_round` writes; what is in it belongs to another job."""
        vault = self._claim(silo)
        if vault.exists():  # another model's or lock's is refused, and not written over
            now = private_state_dict(model)
            vault.load(model)
            load_private_state_dict(model, now)
        return f"private state in {vault.path}"

    def receive(self, model: nn.Module, state: Mapping[str, Tensor], *, round_index: int) -> None:
        """Take the key of the first model, and turn an average back as its silos had turned it."""
        lock = self._held(model)
        if round_index < 0:
            if not (self._file or self._agreed):
                raise HostError("the silos have no secret to lock with: name keylock.group_key")
            lock.begin(state, self._file + self._agreed + self._job)
            lock.masks = self._masks
        if lock.masks != NONE:
            _check_precision(model)
            self._scales = scales_of(lock.parts, state)
            size = self._scales[PARAMETERS]
            if self._size is not None and size > GROWN * self._size:
                raise UpdateRefused(
                    f"round {round_index}: the average that came is {size / self._size:.0f} times "
                    "as large as what this silo sent: its masks have not cancelled. Let the "
                    "aggregator weigh silos by their samples and use all of them, or set keylock: "
                    "{mask: false}"
                )
        # copied, as a model may keep the very tensor that is loaded, and change it
        self._integers = {name: tensor.clone() for name, tensor in lock.integers(state).items()}
        lock.enter(round_index)

    def begin_round(self, model: nn.Module, *, round_index: int) -> None:
        """From now on the state is shown under this round's turn."""
        super().begin_round(model, round_index=round_index)
        self._held(model).enter(round_index)

    def end_round(self, model: nn.Module, *, round_index: int) -> bool:
        """Save what opens this round's states."""
        self._held(model).remember(model)
        return super().end_round(model, round_index=round_index)

    def release(
        self, model: nn.Module, state: Mapping[str, Tensor], *, samples: float
    ) -> Mapping[str, Tensor]:
        """Only what the lock itself has made in this round, bit by bit, and under a mask."""
        lock = self._held(model)
        made = lock.made(state)
        if made is None:
            raise UpdateRefused(
                "what it would send was not made by the lock; under module: whole a silo sends "
                "model.state_dict(), whole and as it is, of the model that FedML gives the "
                "trainer: no gradients, no differences, no copies of parameters"
            )
        self._check_integers(state)
        if lock.masks == NONE:
            return state
        if samples != self._samples:
            raise UpdateRefused(
                f"it says that it has {samples:g} samples and said {self._samples} when the job "
                "began, so that the silos' masks would not cancel: leave the number as it is, or "
                "set keylock: {mask: false}"
            )
        sizes = scales_of(lock.parts, state)
        if part := outgrown(sizes, self._scales):
            raise UpdateRefused(
                f"{part} has become more than {MOST:g} times as large in this round as its mask is "
                "made for: give the model inputs of a mean near 0 and a deviation near 1, or set "
                "keylock: {mask: false}"
            )
        turns, sending = lock.turns, (int(lock.round), made, self._scales)
        if self._sent is not None and self._sent[0] >= sending[0] and self._sent != sending:
            raise UpdateRefused(
                "it would send a second state in one round, and the difference of two has no mask: "
                "send one, or set keylock: {mask: false}"
            )
        self._sent = sending
        self._size = sizes[PARAMETERS]
        masked = lock.masks.masked(state, lock.parts, self._scales, turns.key, turns.round_index)
        # of the same kind, as FedML takes a plain dict for one state a silo
        sent: Any = copy(state)
        sent.update(masked)
        return cast("Mapping[str, Tensor]", sent)

    def _held(self, model: nn.Module) -> StateLock:
        """The job's lock, which is still on the model.

        Raises:
            LockError: it is not, so that what the model shows is not under the job's key and masks.

        """
        lock = lock_of(model)
        if lock is None or lock is not self._lock_of_job:
            raise LockError(
                "the model was unlocked or locked anew, and what it shows is not sent: the job's "
                "own code must call neither unlock_model nor lock_model"
            )
        return lock

    def _check_integers(self, state: Mapping[str, Tensor]) -> None:
        """Refuse integers that training has changed: they are sent as they are.

        Raises:
            UpdateRefused: naming the first. How many batches a norm has seen may change.

        """
        for name, came in self._integers.items():
            sent = state.get(name)
            if sent is None or (name.endswith("num_batches_tracked") and sent.numel() == 1):
                continue
            if not torch.equal(sent.cpu(), came.cpu()):
                raise UpdateRefused(
                    f"{name} has integers that training has changed, and integers are not locked: "
                    "keep it out of the state (register_buffer(..., persistent=False)), or make it "
                    "one of floating-point numbers"
                )

    def surrogate(self, model: nn.Module) -> Surrogate:
        """The public model: nothing of it is private but how its state is turned."""
        # outside of a job that of the smallest in which there is something to hide from a silo
        in_job = self._lock_of_job is not None
        peers = len(self._masks.pairs) if in_job else 2 * self.wants_pairs
        update_transform = RotationTransform.of(model, peers=peers)
        return Surrogate(*surrogate(model, self.config), _nothing, update_transform)

    def twin(
        self, model: nn.Module, protected: nn.Module
    ) -> tuple[nn.Module, Mapping[str, Tensor]]:
        """The model with the weights that the silo computes with, and how states are opened."""
        plain = deepcopy(protected)
        unlock_model(plain)
        return plain, effective_state(protected)


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
