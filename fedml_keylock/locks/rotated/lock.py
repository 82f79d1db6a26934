"""`lock: rotated`: what leaves a silo is rotated: a server compares what it cannot read."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...errors import ConfigError, HostError, LockError, UpdateRefused
from ...types import Credentials, JobSecrets, Surrogate
from ..config import KeyLockConfig
from ..description import LayerCheck, LockInfo, LockIssue, ModelCheck
from ..entropy import Uniform
from ..group_key import group_secret
from ..job_key import JobKey
from ..private import ATTRIBUTE
from ..protocol import Lock
from .rotation import Rotation
from .transform import RotationTransform
from .turns import as_integers, digest, integers_of, parts_of

__all__ = ["RotatedLock"]


class RotatedLock(Lock):
    """`lock: rotated`: for FedML's robust aggregators, which compare updates by their distances.

    All silos rotate the whole state by one secret orthogonal matrix, another one each round. What
    is left to be seen are lengths and distances. It is for an honest-but-curious server.

    Example:
        >>> RotatedLock(KeyLockConfig(lock="rotated")).title
        'keylock:rotated'

    """

    weakness: ClassVar[str] = (
        "lock: rotated leaves lengths and distances of updates to be seen, and labels in part; it "
        "is for robust_aggregation under an honest-but-curious server: lock: sealed hides all"
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
        """How reports name it: "keylock:rotated"."""
        return ":".join(["keylock", "rotated"] + ["group"] * (self.config.group_key is not None))

    # on a model

    @staticmethod
    def is_on(model: nn.Module) -> bool:
        """Whether a handle is attached to the model."""
        return isinstance(vars(model).get(ATTRIBUTE), Rotation)

    def _check(self, model: nn.Module) -> ModelCheck:
        if hasattr(model, ATTRIBUTE):
            return ModelCheck((LockIssue("", f"has an attribute named {ATTRIBUTE} of its own"),))
        try:
            rotated = {name for part in parts_of(model) for name in part.names}
        except LockError as error:
            return ModelCheck((LockIssue("", str(error)),))
        owners = {name.rpartition(".")[0] for name in rotated}
        layers = [n or type(model).__name__ for n, _ in model.named_modules() if n in owners]
        how = "its numbers are sent rotated, with all others"
        return ModelCheck(
            issues=(),
            layers=tuple(LayerCheck(name, locked=True, how=how) for name in layers),
            shared=tuple(name for name in model.state_dict() if name not in rotated),
        )

    def _lock(self, model: nn.Module, *, key: Tensor | None, uniform: Uniform | None) -> None:
        """Attach the handle of a silo that is alone: it can `rotate` and `restore`."""
        if key is not None:
            raise LockError("a key is of lock: paper, and lock: rotated has none")
        if any(parameter.is_meta for parameter in model.parameters()):
            raise LockError("lock: rotated needs a model with values: take it off meta before")
        self.plan(model)
        secret = os.urandom(32)
        if uniform is not None:
            secret = bytes((256 * uniform((32,))).byte().tolist())
        elif self.config.group_key is not None:
            secret = group_secret(self.config.group_key)
        key_of_job = JobKey.derive(secret, digest(_tensors(model)))
        object.__setattr__(model, ATTRIBUTE, Rotation(parts_of(model), key_of_job))

    @staticmethod
    def info(model: nn.Module) -> LockInfo:
        """Every layer is locked, and nothing in the model is private."""
        layers = [n for n, m in model.named_modules() if [*m.parameters(recurse=False)]]
        count = sum(p.numel() for p in model.parameters())
        summary = f"rotated: {count:,} parameters are rotated as one vector before they are sent"
        return LockInfo((*layers,), ("",), 0, count, summary=summary)

    @staticmethod
    def unlock(model: nn.Module) -> None:
        """Take the handle off."""
        object.__delattr__(model, ATTRIBUTE)

    @staticmethod
    def private_tensors(model: nn.Module) -> dict[str, Tensor]:
        """The job's key, and what tells its models from others."""
        return _on(model).tensors

    @staticmethod
    def load_private(model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Put private state back; see `Lock.load_private`."""
        _on(model).load(state)

    @staticmethod
    def export(model: nn.Module) -> nn.Module:
        """The model computes as it is."""
        plain = deepcopy(model).eval()
        object.__delattr__(plain, ATTRIBUTE)
        return plain

    @staticmethod
    def secret_variables(model: nn.Module) -> dict[str, Tensor]:
        """The key, and the rounds of the model that was received last and of the one sent next."""
        rotation = _on(model)
        assert rotation.key is not None
        rounds = {"before": rotation.round - 1, "after": rotation.round}
        return {"key": rotation.key.tensor, **{n: torch.tensor(r) for n, r in rounds.items()}}

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
        # a job that was ended within a round has left the average of the one before
        last = (
            {rotation.round, max(0, rotation.round - 1)} if round_index is None else {round_index}
        )
        for one in sorted(last, reverse=True):
            restored = rotation.restore(state, round_index=one)
            if rotation.is_like(restored):
                model.load_state_dict(restored)
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
        """Rotate the average of the round before back; the first model is open."""
        rotation = _on(model)
        if round_index != 0:
            last = rotation.round if round_index is None else round_index - 1
            state = rotation.restore(state, round_index=last)
        model.load_state_dict(state)

    @staticmethod
    def deployed(model: nn.Module, *, silo: int, round_index: int) -> tuple[str, str]:
        """The average of a round, in the open."""
        return f"rotated back by silo {silo}", "the model that the server cannot read"

    def as_outsider(
        self, model: nn.Module, own: Callable[[], nn.Module], uniform: Uniform | None
    ) -> nn.Module:
        """The public state, rotated back by another key."""
        candidate = deepcopy(model)
        self.lock(candidate, uniform=uniform)
        restored = _on(candidate).restore(_tensors(model), round_index=0)
        self.unlock(candidate)
        candidate.load_state_dict(restored)
        return candidate

    # as a job's defense

    @property
    def transforms_updates(self) -> bool:
        """It does."""
        return True

    @property
    def wraps_model(self) -> bool:
        """It does not: the model is the job's own."""
        return False

    @property
    def credentials(self) -> Credentials | None:
        """What silos agree on secrets with."""
        return Credentials(self.config.group_key, link_key=self.config.link_key)

    def share(self, secrets: JobSecrets) -> None:
        """Take what the silos have agreed on, which a file's secret is part of if there is one."""
        self._secret = secrets.group

    def begin_job(self, nonce: bytes) -> None:
        """Take the server's nonce of this job.

        Where the secret is a file's, jobs that start from the same model would have the same key
        without it.
        """
        self._nonce = nonce

    def lock_for_job(self, model: nn.Module) -> LockInfo:
        """Nothing is done to the model; the key follows with the first model that comes."""
        self.plan(model)
        self._rotation = Rotation(parts_of(model))
        return self.info(model)

    def enter_silo(self, model: nn.Module, *, silo: int) -> str:
        """Claim the silo's vault: what is in it belongs to another job."""
        self._silo = silo
        vault = self._claim(silo)
        if vault.exists():  # another model's or lock's is refused, and not written over
            Rotation(parts_of(model)).load(vault.load()[0])
        return f"private state in {vault.path}"

    def begin_round(self, model: nn.Module, *, round_index: int) -> None:
        """Nothing: the model is the job's own."""

    def end_round(self, model: nn.Module, *, round_index: int) -> bool:
        """Nothing: what a silo keeps of a round is there when it is sent."""
        return True

    def open(
        self, model: nn.Module, message: Mapping[str, Tensor], *, round_index: int
    ) -> Mapping[str, Tensor]:
        """The first model as it is, and every average as it was before it was rotated."""
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
        return opened

    def seal(
        self, model: nn.Module, payload: Mapping[str, Tensor], *, samples: float
    ) -> Mapping[str, Tensor]:
        """A whole state, rotated; one in each round."""
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

    def surrogate(self, model: nn.Module) -> Surrogate:
        """The public model: nothing of it is private but how its state is rotated."""
        return Surrogate(deepcopy(model), (), _nothing, RotationTransform.of(model))

    def twin(
        self, model: nn.Module, protected: nn.Module
    ) -> tuple[nn.Module, Mapping[str, Tensor]]:
        """The silo's own model, and what opens its states."""
        rotation = self._begun()
        if rotation.key is None:
            return deepcopy(protected), {}
        rounds = {"before": rotation.round - 1, "after": rotation.round}
        private = {"key": rotation.key.tensor, **{n: torch.tensor(r) for n, r in rounds.items()}}
        return deepcopy(protected), private

    def _begun(self) -> Rotation:
        if self._rotation is None:
            raise HostError("a model came before the job's own was locked")
        return self._rotation

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
                    f"{name} has integers that training has changed, and integers are not rotated: "
                    "use lock: sealed, or keep it out of the state (persistent=False)"
                )


def _on(model: nn.Module) -> Rotation:
    found = vars(model)[ATTRIBUTE]
    assert isinstance(found, Rotation)
    return found


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach() for n, t in model.state_dict().items() if isinstance(t, Tensor)}


def _nothing(_count: int, _generator: torch.Generator) -> dict[str, Tensor]:
    """What there is to draw of unknowns in what silos compute."""
    return {}
