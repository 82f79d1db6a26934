"""`lock: rotated`: the server compares rotated states that it cannot read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...errors import ConfigError, HostError, UpdateRefused
from ...tensors import as_integers, copy_of, deep_copy, with_versions
from ...types import AttackerModel, JobSecrets
from ..config import KeyLockConfig
from ..description import LockInfo
from ..entropy import Uniform
from ..group_key import group_secret
from ..job_key import JobKey
from ..private import ATTRIBUTE
from ..wire import WireLock, no_unknowns, state_tensors
from .rotation import Rotation
from .rotation_transform import RotationTransform
from .round_rotation import digest, integers_of, parts_of

__all__ = ["RotatedLock"]


class RotatedLock(WireLock):
    """`lock: rotated`: for FedML's robust aggregators, which compare updates by their distances.

    All silos rotate the whole state by one secret orthogonal matrix, a new one each round. Lengths
    and distances remain visible. It is for an honest-but-curious server.

    Example:
        >>> RotatedLock(KeyLockConfig(lock="rotated")).title
        'keylock:rotated'

    """

    HANDLE = Rotation
    SENT = "rotated"
    SUMMARY = "are rotated as one vector before they are sent"
    weakness: ClassVar[str] = (
        "lock: rotated shows the server lengths and distances of updates, and some labels; it is "
        "for robust_aggregation with an honest-but-curious server: lock: sealed hides everything"
    )

    def __init__(self, config: KeyLockConfig) -> None:
        super().__init__(config)
        self._rotation: Rotation | None = None
        self._nonce, self._secret = b"", b""
        self._integers: dict[str, Tensor] = {}
        self._silo = 0
        self._sent: dict[int, int] = {}

    @property
    def title(self) -> str:
        """The name in reports: "keylock:rotated"."""
        return ":".join(["keylock", "rotated"] + ["group"] * (self.config.group_key is not None))

    @property
    def server_reads(self) -> str:
        """What one rotation of all updates leaves as it was."""
        return "lengths and distances of updates, and labels in part; no update as it was trained"

    # on a model

    def _locked_names(self, model: nn.Module) -> set[str]:
        return {name for part in parts_of(model) for name in part.names}

    def _handle(self, model: nn.Module, secret: bytes) -> Rotation:
        return Rotation(parts_of(model), JobKey.derive(secret, digest(state_tensors(model))))

    def _draw(self, uniform: Uniform | None) -> bytes:
        if uniform is None and self.config.group_key is not None:
            return group_secret(self.config.group_key)
        return super()._draw(uniform)

    @staticmethod
    def private_tensors(model: nn.Module) -> dict[str, Tensor]:
        """The job's key, and a sample of its weights, to recognise its models."""
        return _on(model).tensors

    @staticmethod
    def load_private(model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Put private state back; see `Lock.load_private`."""
        _on(model).load(state)

    @staticmethod
    def secret_variables(model: nn.Module) -> dict[str, Tensor]:
        """The key, and the rounds of the last received model and of the next sent one."""
        return _on(model).variables

    def load_public(
        self,
        model: nn.Module,
        state: Mapping[str, Tensor],
        *,
        round_index: int | None,
        source: Path,
    ) -> None:
        """Load the average of a round; see `Lock.load_public`."""
        rotation = _on(model)
        # a job that ended within a round leaves the average of the previous one
        last = (
            {rotation.round, max(0, rotation.round - 1)} if round_index is None else {round_index}
        )
        for one in sorted(last, reverse=True):
            restored = rotation.restore(state, round_index=one)
            if rotation.is_like(restored):
                model.load_state_dict(with_versions(restored, model.state_dict()))
                return
        raise ConfigError(
            f"{source}: not the average of round {max(last)}, as rotated back so it is noise: name "
            "the round after which it was saved, from 0, by --round; a vault opens nothing of "
            "other jobs"
        )

    def load_round(
        self,
        model: nn.Module,
        state: Mapping[str, Tensor],
        *,
        round_index: int | None,
        source: Path,
    ) -> None:
        """Rotate the previous round's average back; the first model was not rotated."""
        rotation = _on(model)
        if round_index != 0:
            last = rotation.round if round_index is None else round_index - 1
            state = rotation.restore(state, round_index=last)
        model.load_state_dict(with_versions(state, model.state_dict()))

    @staticmethod
    def deployed(model: nn.Module, *, silo: int, round_index: int) -> tuple[str, str]:
        """The average of a round, in the clear."""
        return f"rotated back by silo {silo}", "the model that the server cannot read"

    def as_outsider(
        self, model: nn.Module, own: Callable[[], nn.Module], uniform: Uniform | None
    ) -> nn.Module:
        """The public state, rotated back with a wrong key."""
        candidate = deep_copy(model)
        self.lock(candidate, uniform=uniform)
        restored = _on(candidate).restore(state_tensors(model), round_index=0)
        self.unlock(candidate)
        candidate.load_state_dict(with_versions(restored, model.state_dict()))
        return candidate

    # as a job's defense

    def share(self, secrets: JobSecrets) -> None:
        """Set the secret that the silos have agreed on; it includes the group's file, if any."""
        self._secret = secrets.group

    def begin_job(self, nonce: bytes) -> None:
        """Set the job nonce from the server.

        Without it, jobs with the same key file and the same first model would have the same key.
        """
        self._nonce = nonce

    def lock_for_job(self, model: nn.Module) -> LockInfo:
        """Nothing in the model changes; the key is derived from the server's first model."""
        self.plan(model)
        self._rotation = Rotation(parts_of(model))
        return self.info(model)

    def enter_silo(self, model: nn.Module, *, silo: int) -> str:
        """Claim the silo's vault; an existing one must be of the same lock."""
        self._silo = silo
        vault = self._claim(silo)
        if vault.exists():  # refuse to overwrite the vault of another model or lock
            Rotation(parts_of(model)).load(vault.load()[0])
        return f"private state in {vault.path}"

    def open(
        self, model: nn.Module, message: Mapping[str, Tensor], *, round_index: int
    ) -> Mapping[str, Tensor]:
        """Accept the first model as it is, and rotate every average back."""
        rotation = self._begun()
        if round_index < 0:
            if not self._secret:
                raise HostError("the silos have no secret to lock with: name keylock.group_key")
            if rotation.key is None:
                rotation.key = JobKey.derive(self._secret, self._nonce, digest(message))
            opened: dict[str, Tensor] = OrderedDict(message)
        else:
            opened = rotation.restore(message, round_index=round_index)
            rotation.round = round_index + 1
        integers = as_integers(opened, integers_of(model))
        self._integers = {name: tensor.clone() for name, tensor in integers.items()}
        opened.update(integers)
        return with_versions(opened, model.state_dict())

    def seal(
        self, model: nn.Module, payload: Mapping[str, Tensor], *, samples: float
    ) -> Mapping[str, Tensor]:
        """Rotate a whole state; once in each round."""
        rotation = self._begun()
        if self._sent.get(self._silo, -1) >= rotation.round:
            raise UpdateRefused(
                f"round {rotation.round}: it would send a second state in one round: send one"
            )
        self._check_integers(payload)
        rotated = rotation.rotate(payload)
        self._sent[self._silo] = rotation.round
        vault = self._own_vault()
        vault.save(rotation.tensors, round_index=rotation.round + 1)
        if self.config.keep_history:
            vault.keep(rotation.tensors, round_index=rotation.round)
        self._release_in_turn()
        return rotated

    def attacker_model(self, model: nn.Module) -> AttackerModel:
        """The public model: only the rotation of its state is private."""
        return AttackerModel(copy_of(model), (), no_unknowns, RotationTransform.of(model))

    def baseline(
        self, model: nn.Module, protected: nn.Module
    ) -> tuple[nn.Module, Mapping[str, Tensor]]:
        """The silo's own model, and the key that rotates its states back."""
        rotation = self._begun()
        return copy_of(protected), {} if rotation.key is None else rotation.variables

    def _begun(self) -> Rotation:
        if self._rotation is None:
            raise HostError("a model arrived before the job's own was locked")
        return self._rotation

    def _check_integers(self, state: Mapping[str, Tensor]) -> None:
        """Refuse integers that training has changed: integers are not rotated.

        Raises:
            UpdateRefused: naming the first. BatchNorm's count of batches may change.

        """
        for name, first in self._integers.items():
            sent = state.get(name)
            if sent is None or (name.endswith("num_batches_tracked") and sent.numel() == 1):
                continue
            if not torch.equal(sent.cpu(), first.cpu()):
                raise UpdateRefused(
                    f"{name} has integers that training has changed, and integers are not rotated: "
                    "use lock: sealed, or keep it out of the state (persistent=False)"
                )


def _on(model: nn.Module) -> Rotation:
    found = vars(model)[ATTRIBUTE]
    assert isinstance(found, Rotation)
    return found
