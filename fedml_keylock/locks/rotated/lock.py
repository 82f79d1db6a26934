"""`lock: rotated`: the whole state is rotated before it is sent, and in MPI jobs masked."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from copy import copy, deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...errors import ConfigError, HostError, LockError, UpdateRefused
from ...types import JobSecrets, Surrogate
from ..config import KeyLockConfig
from ..description import LayerCheck, LockInfo, LockIssue, ModelCheck
from ..entropy import Uniform
from ..group_key import group_secret
from ..protocol import Lock
from .mask import MOST, masked, outgrown, scales_of
from .state import StateLock, lock_state, state_lock, unlock_state
from .transform import RotationTransform
from .turns import PARAMETERS, parts_of

__all__ = ["RotatedLock"]

GROWN = 4.0
"""How many times as large as what a silo sent an average may be: no average of states is larger
than the largest of them, and masks that have not cancelled are a thousand times wider."""


class RotatedLock(Lock):
    """`lock: rotated`: the job trains as without a defense, and what silos send is rotated.

    The key is one for the whole group and changes by itself from job to job and round to round, so
    that vaults are written, for `export` and audits, and not gone on from.

    Example:
        >>> RotatedLock(KeyLockConfig()).title
        'keylock:rotated'

    """

    def __init__(self, config: KeyLockConfig) -> None:
        super().__init__(config)
        self._lock_of_job: StateLock | None = None
        self._file, self._nonce = b"", b""
        self._secrets: JobSecrets | None = None
        self._scales: dict[str, float] = {}
        self._size: float | None = None
        self._integers: dict[str, Tensor] = {}
        self._sent: tuple[int, bytes, dict[str, float]] | None = None

    @property
    def title(self) -> str:
        """How reports name it: "keylock:rotated"."""
        group = ["group"] * (self.config.group_key is not None)
        unmasked = ["unmasked"] * (not self.config.masks)
        return ":".join(["keylock", "rotated", *group, *unmasked])

    # on a model

    @staticmethod
    def is_on(model: nn.Module) -> bool:
        """Whether the model's state goes through a lock."""
        return state_lock(model) is not None

    def _check(self, model: nn.Module) -> ModelCheck:
        """A lock on the whole state asks nothing of the layers."""
        if hasattr(model, "keylock"):
            return ModelCheck((LockIssue("", "has an attribute named keylock of its own"),))
        try:
            rotated = {name for part in parts_of(model) for name in part.names}
        except LockError as error:
            return ModelCheck((LockIssue("", str(error)),))
        owners = dict.fromkeys(name.rpartition(".")[0] for name in rotated)
        layers = [n or type(model).__name__ for n, _ in model.named_modules() if n in owners]
        how = "its numbers are sent rotated, with all others"
        return ModelCheck(
            issues=(),
            layers=tuple(LayerCheck(name, locked=True, how=how) for name in layers),
            shared=tuple(name for name in model.state_dict() if name not in rotated),
        )

    def _lock(self, model: nn.Module, *, key: Tensor | None, uniform: Uniform | None) -> None:
        """Let the model's `state_dict` and `load_state_dict` go through a rotation."""
        if key is not None:
            raise LockError("a key is of lock: paper, and lock: rotated has none")
        if any(parameter.is_meta for parameter in model.parameters()):
            raise LockError("lock: rotated needs a model with values: take it off meta before")
        self.plan(model)
        if uniform is not None:
            secret = bytes((256 * uniform((32,))).byte().tolist())
        elif self.config.group_key is not None:
            secret = group_secret(self.config.group_key)
        else:
            secret = os.urandom(32)
        lock = lock_state(model)
        # in a job the key is derived from the first model that comes, and rounds follow
        state = {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}
        lock.begin(state, JobSecrets(secret))
        lock.enter(0)

    @staticmethod
    def info(model: nn.Module) -> LockInfo:
        """Every layer is locked, and nothing in the model is private."""
        layers = [n for n, m in model.named_modules() if [*m.parameters(recurse=False)]]
        count = sum(p.numel() for p in model.parameters())
        summary = (
            f"locked the whole state: all of {count:,} parameters are rotated before they are sent"
        )
        return LockInfo((*layers,), ("",), 0, count, summary=summary)

    @staticmethod
    def unlock(model: nn.Module) -> None:
        """Take the lock out; the weights are the model's own all the time."""
        unlock_state(model)

    @staticmethod
    def private_tensors(model: nn.Module) -> dict[str, Tensor]:
        """The job's key, and what tells its models from others."""
        return _on(model).tensors

    @staticmethod
    def load_private(model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Put private state back; see `Lock.load_private`."""
        _on(model).restore(state)

    @staticmethod
    def export(model: nn.Module) -> nn.Module:
        """The model computes as it is."""
        plain = deepcopy(model).eval()
        unlock_state(plain)
        return plain

    @staticmethod
    def secret_variables(model: nn.Module) -> dict[str, Tensor]:
        """The key, and the rounds of the model that was received last and of the one sent next."""
        lock = _on(model)
        assert lock.key is not None
        place = {"before": torch.tensor(lock.round), "after": torch.tensor(lock.round + 1)}
        return {**lock.key.tensors, **place}

    @staticmethod
    def load_public(
        model: nn.Module, state: Mapping[str, Tensor], *, round_index: int | None, source: Path
    ) -> None:
        """Load the average of a round; see `Lock.load_public`."""
        lock = _on(model)
        if round_index is not None:
            lock.enter(round_index)
        model.load_state_dict(state)
        if not lock.is_like(model):
            raise ConfigError(
                f"{source}: not the average of round {lock.round}, as rotated back so it is noise: "
                "name the round after which it was saved, from 0, by --round; a vault opens "
                "nothing of other jobs"
            )

    @staticmethod
    def deployed(model: nn.Module, *, silo: int, round_index: int) -> tuple[str, str]:
        """The average of a round, in the open."""
        made = f"rotated back by silo {silo} after round {_on(model).round}"
        return made, "the model that the server cannot read"

    def as_outsider(
        self, model: nn.Module, own: Callable[[], nn.Module], uniform: Uniform | None
    ) -> nn.Module:
        """The public state, rotated back by another key."""
        candidate = deepcopy(model)
        self.lock(candidate, uniform=uniform)
        candidate.load_state_dict(model.state_dict())
        return candidate

    # as a job's defense

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
        return self.config.masks

    def share(self, secrets: JobSecrets) -> None:
        """Take what the silos have agreed on.

        The secret is beside that of the file, if there is one, which who stood between the silos
        does not have. The masks cancel for no other numbers of samples.
        """
        self._secrets = secrets

    def begin_job(self, nonce: bytes) -> None:
        """Take the server's nonce of this job.

        Where the secret is a file's, jobs that start from the same model would have the same key
        without it.
        """
        self._nonce = nonce

    def lock_for_job(self, model: nn.Module) -> LockInfo:
        """Lock the job's model; the key follows with the first model that comes."""
        if self.config.group_key is not None:
            self._file = group_secret(self.config.group_key)
        self.plan(model)
        self._lock_of_job = lock_state(model)
        return self.info(model)

    def enter_silo(self, model: nn.Module, *, silo: int) -> str:
        """Take the silo's vault, which `end_round` writes; what is in it belongs to another job."""
        vault = self._claim(silo)
        if vault.exists():  # another model's or lock's is refused, and not written over
            now, (before, _) = self.private_state(model), vault.load()
            self.load_private(model, before)
            self.load_private(model, now)
        return f"private state in {vault.path}"

    def receive(self, model: nn.Module, state: Mapping[str, Tensor], *, round_index: int) -> None:
        """Take the key of the first model, and turn an average back as its silos had turned it."""
        lock = self._held(model)
        if round_index < 0:
            if not self._file and self._secrets is None:
                raise HostError("the silos have no secret to lock with: name keylock.group_key")
            lock.begin(state, self._secrets or JobSecrets(b""), self._file, self._nonce)
        if lock.masked:
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
                "what it would send was not made by the lock; under lock: rotated a silo sends "
                "model.state_dict(), whole and as it is, of the model that FedML gives the "
                "trainer: no gradients, no differences, no copies of parameters"
            )
        self._check_integers(state)
        if not lock.masked:
            return state
        key = lock.turns.key
        if samples != key.samples[key.silo]:
            raise UpdateRefused(
                f"it says that it has {samples:g} samples and said {key.samples[key.silo]} when "
                "the job began, so that the silos' masks would not cancel: leave the number as it "
                "is, or set keylock: {mask: false}"
            )
        sizes = scales_of(lock.parts, state)
        if part := outgrown(sizes, self._scales):
            raise UpdateRefused(
                f"{part} has become more than {MOST:g} times as large in this round as its mask is "
                "made for: give the model inputs of a mean near 0 and a deviation near 1, or set "
                "keylock: {mask: false}"
            )
        sending = (lock.round, made, self._scales)
        if self._sent is not None and self._sent[0] >= sending[0] and self._sent != sending:
            raise UpdateRefused(
                "it would send a second state in one round, and the difference of two has no mask: "
                "send one, or set keylock: {mask: false}"
            )
        self._sent = sending
        self._size = sizes[PARAMETERS]
        # of the same kind, as FedML takes a plain dict for one state a silo
        sent: Any = copy(state)
        sent.update(masked(state, lock.parts, self._scales, key, lock.round))
        return cast("Mapping[str, Tensor]", sent)

    def _held(self, model: nn.Module) -> StateLock:
        """The job's lock, which is still on the model.

        Raises:
            LockError: it is not, so that what the model shows is not under the job's key and masks.

        """
        lock = state_lock(model)
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
        """The public model: nothing of it is private but how its state is rotated."""
        # outside of a job that of the smallest in which there is something to hide from a silo
        peers = 2 * self.wants_pairs
        if self._lock_of_job is not None:
            peers = len(self._secrets.pairs) if self._secrets else 0
        transform = RotationTransform.of(model, peers=peers)
        return Surrogate(deepcopy(model), (), _nothing, transform)

    def twin(
        self, model: nn.Module, protected: nn.Module
    ) -> tuple[nn.Module, Mapping[str, Tensor]]:
        """The model with the weights that the silo computes with, and what opens its states."""
        plain = deepcopy(protected)
        unlock_state(plain)
        return plain, self.secret_variables(protected)


def _on(model: nn.Module) -> StateLock:
    lock = state_lock(model)
    assert lock is not None
    return lock


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
