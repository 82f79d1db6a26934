"""`lock: sealed`: exact secure aggregation at the wire, verified by the silos."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import ConfigError, HostError, LockError, UpdateRefused
from ...types import Credentials, JobSecrets, Surrogate
from ..config import KeyLockConfig
from ..description import LayerCheck, LockInfo, LockIssue, ModelCheck
from ..entropy import Uniform
from ..private import ATTRIBUTE
from ..protocol import Lock
from .checkpoint import open_checkpoint, read_round, write_checkpoint, write_model
from .encoding import entries_of
from .neighbours import MOST_COMPLETE, SPARSE
from .record import Record
from .rounds import Rounds, digest_of
from .sealing import TRAILER, add_up
from .transform import SealTransform

__all__ = ["SealedLock"]


class SealedLock(Lock):
    """`lock: sealed`: nothing in the silo changes; what leaves it are words that only silos open.

    Example:
        >>> SealedLock(KeyLockConfig()).title
        'keylock:sealed'

    """

    def __init__(self, config: KeyLockConfig) -> None:
        super().__init__(config)
        self._secrets: JobSecrets | None = None
        self._rounds: Rounds | None = None
        self._own_model = b""
        self._silo = 0

    @property
    def title(self) -> str:
        """How reports name it."""
        return "keylock:sealed"

    # on a model

    @staticmethod
    def is_on(model: nn.Module) -> bool:
        """Whether a handle is attached to the model."""
        return isinstance(vars(model).get(ATTRIBUTE), Rounds)

    def _check(self, model: nn.Module) -> ModelCheck:
        if hasattr(model, ATTRIBUTE):
            return ModelCheck((LockIssue("", f"has an attribute named {ATTRIBUTE} of its own"),))
        state = _tensors(model)
        try:
            entries_of(state)
        except UpdateRefused as error:
            return ModelCheck((LockIssue("", str(error)),))
        if not state:
            reason = f"{type(model).__name__} has no parameters to lock"
            return ModelCheck((LockIssue("", reason),))
        owners = {name.rpartition(".")[0] for name in state}
        layers = [n or type(model).__name__ for n, _ in model.named_modules() if n in owners]
        how = "its numbers are sent sealed, with all others"
        return ModelCheck((), tuple(LayerCheck(name, locked=True, how=how) for name in layers))

    def _lock(self, model: nn.Module, *, key: Tensor | None, uniform: Uniform | None) -> None:
        """Attach the handle of a silo that is alone: it can `seal` and `open`."""
        if key is not None:
            raise LockError("a key is of lock: paper, and lock: sealed has none")
        if any(parameter.is_meta for parameter in model.parameters()):
            raise LockError("lock: sealed needs a model with values: take it off meta before")
        self.plan(model)
        secret = os.urandom(32)
        if uniform is not None:
            secret = bytes((256 * uniform((32,))).byte().tolist())
        rounds = Rounds(JobSecrets(secret), scale=self.config.scale)
        rounds.begin(_tensors(model))
        # not a module of the model: a sequence would run it, and everybody would count it
        object.__setattr__(model, ATTRIBUTE, rounds)

    @staticmethod
    def info(model: nn.Module) -> LockInfo:
        """Every layer is sealed, and nothing in the model is private."""
        layers = [n for n, m in model.named_modules() if [*m.parameters(recurse=False)]]
        count = sum(p.numel() for p in model.parameters())
        summary = f"sealed: {count:,} parameters leave the silo as words that only silos open"
        return LockInfo((*layers,), ("",), 0, count, summary=summary)

    @staticmethod
    def unlock(model: nn.Module) -> None:
        """Take the handle off."""
        object.__delattr__(model, ATTRIBUTE)

    @staticmethod
    def private_tensors(model: nn.Module) -> dict[str, Tensor]:
        """The record of the round that was sealed last; nothing before."""
        record = _on(model).record
        return {} if record is None else record.tensors

    @staticmethod
    def load_private(model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Put a record back; see `Lock.load_private`."""
        _on(model).record = Record.from_tensors(state) if state else None

    @staticmethod
    def export(model: nn.Module) -> nn.Module:
        """The model computes as it is."""
        plain = deepcopy(model).eval()
        object.__delattr__(plain, ATTRIBUTE)
        return plain

    @staticmethod
    def secret_variables(model: nn.Module) -> dict[str, Tensor]:
        """The record of a round, which for an audit holds what opens the silo's own message."""
        return SealedLock.private_tensors(model)

    def check_fit(
        self,
        model: nn.Module,
        state: Mapping[str, Tensor],
        constants: Mapping[str, float],
        source: Path,
    ) -> None:
        """Nothing of a sealed checkpoint, which opens or does not."""
        if TRAILER not in state:
            super().check_fit(model, state, constants, source)

    def needs_vault(self, state: Mapping[str, Tensor]) -> bool:
        """A sealed checkpoint needs it; what `save_model` wrote is open."""
        return TRAILER in state

    def load_public(
        self,
        model: nn.Module,
        state: Mapping[str, Tensor],
        *,
        round_index: int | None,
        source: Path,
    ) -> None:
        """Open the server's sealed checkpoint and load it; see `Lock.load_public`."""
        record = _on(model).record
        if TRAILER not in state:
            model.load_state_dict(state)
            return
        if record is None:
            raise ConfigError(f"{source}: the vault holds nothing that opens it")
        if round_index is not None:
            raise ConfigError("--round: of lock: rotated only: a sealed checkpoint says its round")
        opened = open_checkpoint(record, state, round_index=read_round(source), source=source)
        model.load_state_dict(opened, strict=opened.keys() == model.state_dict().keys())

    def load_round(
        self,
        model: nn.Module,
        state: Mapping[str, Tensor],
        *,
        round_index: int | None,
        source: Path,
    ) -> None:
        """Load what the silo had opened when the round began, or open the last sum."""
        record = _on(model).record
        if record is not None and round_index is not None:
            state = record.encoding.base
        elif record is not None and TRAILER in state:
            state = open_checkpoint(record, state, round_index=None, source=source)
        model.load_state_dict({**model.state_dict(), **state})

    @staticmethod
    def deployed(model: nn.Module, *, silo: int, round_index: int) -> tuple[str, str]:
        """The average of a round, in the open."""
        return f"opened by silo {silo}", "the model that the server cannot read"

    def as_outsider(
        self, model: nn.Module, own: Callable[[], nn.Module], uniform: Uniform | None
    ) -> nn.Module:
        """The model that words give to whoever has no key: noise, of the model's own size."""
        drawn = uniform or (lambda shape: torch.rand(shape))
        noise = {}
        for name, tensor in _tensors(model).items():
            size = float(tensor.double().abs().max()) if tensor.numel() else 0.0
            noise[name] = ((2 * drawn(tuple(tensor.shape)) - 1) * size).to(tensor.dtype)
        outside = deepcopy(model)
        outside.load_state_dict(noise)
        return outside

    # as a job's defense

    @property
    def transforms_updates(self) -> bool:
        """It does."""
        return True

    @property
    def seals(self) -> bool:
        """It does."""
        return True

    @property
    def wraps_model(self) -> bool:
        """It does not: the model is the job's own."""
        return False

    @property
    def credentials(self) -> Credentials | None:
        """What silos agree on secrets with."""
        return Credentials(self.config.group_key, self.config.roster, self.config.identity)

    @property
    def tells_samples(self) -> bool:
        """Whether the server is told how many samples each silo has."""
        return self.config.tell_samples

    @property
    def tells_accuracy(self) -> bool:
        """Whether what silos measure leaves them."""
        return self.config.tell_accuracy

    def share(self, secrets: JobSecrets) -> None:
        """Take what the silos have agreed on.

        Raises:
            ConfigError: there are fewer silos than the colluding ones leave out of two.

        """
        silos, colluders = 1 + len(secrets.pairs), self.config.colluders
        if colluders is not None and silos < colluders + 2:
            raise ConfigError(
                f"keylock.colluders: of {silos} silos at most {max(0, silos - 2)} may collude with "
                f"the server, and {colluders} are declared: what is left is a single silo's update"
            )
        if silos == 2 and colluders is None:
            logging.warning(
                "lock: sealed with two silos: each learns the other's update from the average"
            )
        if silos > MOST_COMPLETE and colluders is None:
            logging.warning(
                "lock: sealed with %d silos: masks hold while at most %d of them collude with the "
                "server; keylock: {colluders: NUMBER} declares how many may",
                silos,
                2 * SPARSE - 1,
            )
        self._rounds = Rounds(
            secrets, colluders, self.config.scale, keep_own=self.config.keep_history
        )

    def lock_for_job(self, model: nn.Module) -> LockInfo:
        """Nothing is done to the model; remember what it is before the server sends its own."""
        self.plan(model)
        self.remember(model)
        return self.info(model)

    def remember(self, model: nn.Module) -> None:
        """Remember what this silo's own first model is."""
        self._own_model = digest_of(_tensors(model))

    def enter_silo(self, model: nn.Module, *, silo: int) -> str:
        """Claim the silo's vault, if anything is to be written to it."""
        self._silo = silo
        if not self._writes_vault:
            return "no private state to keep"
        return f"opens checkpoints by {self._claim(silo).path}"

    def begin_round(self, model: nn.Module, *, round_index: int) -> None:
        """Nothing: the model is the job's own."""

    def end_round(self, model: nn.Module, *, round_index: int) -> bool:
        """Nothing: what a silo keeps of a round is there when it is sealed."""
        return True

    def seal(
        self, model: nn.Module, payload: Mapping[str, Tensor], *, samples: float
    ) -> Mapping[str, Tensor]:
        """What is sent in place of a payload."""
        rounds = self._begun()
        message, counts = rounds.seal(payload, samples=samples)
        if counts.names:
            self.note(
                f"round {rounds.round}: {counts.clipped} numbers outgrew their range and were "
                f"clipped, {counts.infinite} are not finite, in {', '.join(counts.names)}",
                silo=self._silo,
            )
        if self._writes_vault:
            assert rounds.record is not None
            own = rounds.record.covers if self.config.keep_history else ()
            kept = replace(rounds.record, covers=own).tensors
            vault = self._own_vault()
            vault.save(kept, round_index=rounds.round)
            if self.config.keep_history:
                vault.keep(kept, round_index=rounds.round)
            self._release_in_turn()
        return message

    def open(
        self, model: nn.Module, message: Mapping[str, Tensor], *, round_index: int
    ) -> Mapping[str, Tensor]:
        """What FedML loads in place of what came: the first model as it is, then verified sums."""
        rounds = self._begun()
        if TRAILER not in message:
            return self._first(rounds, message)
        opened = rounds.open(message)
        done = rounds.round - 1
        if opened.counts.infinite:
            raise UpdateRefused(_diverged(done))
        if opened.counts.clipped:
            # not on standard output, which the server's host reads: whoever chose the model chose
            # what clips in it
            self.note(
                f"round {done}: {opened.counts.clipped} numbers of all silos' updates were clipped "
                "to the range of a round",
                silo=self._silo,
            )
        return opened.state

    def finish(self, rounds: int, *, silo: int) -> None:
        """After the last round: compare with the other silos, and write the open model."""
        held = self._begun()
        held.agreed()
        if self.config.save_model is not None:
            path = self.config.save_model / f"silo-{silo}.safetensors"
            write_model(path, held.base, rounds=rounds)
            logging.info("silo %d: the final model is in %s", silo, path)

    def add_up(self, messages: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """On the server: the sum of a round's messages, and its checkpoint."""
        return add_up(messages)

    def rehearse(
        self,
        base: Mapping[str, Tensor],
        updates: Sequence[tuple[float, Mapping[str, Tensor]]],
    ) -> tuple[list[Mapping[str, Tensor]], Mapping[str, Tensor]]:
        """One round of all silos in one process, with secrets of its own."""
        count = len(updates)
        pairs = {(i, j): os.urandom(32) for j in range(count) for i in range(j)}
        group, samples = os.urandom(32), {i: number for i, (number, _) in enumerate(updates)}
        silos = []
        for own in range(count):
            mine = {i: pairs[min(i, own), max(i, own)] for i in range(count) if i != own}
            silos.append(Rounds(JobSecrets(group, own, mine, samples), self.config.colluders))
            silos[own].scale = self.config.scale
            silos[own].begin(base)
        messages = [
            silo.seal(payload, samples=number)[0]
            for silo, (number, payload) in zip(silos, updates, strict=True)
        ]
        opened = silos[0].open(add_up(messages))
        if opened.counts.infinite:
            raise UpdateRefused(_diverged(0))
        return [*messages], opened.state

    def keep(self, total: Mapping[str, Tensor], *, round_index: int) -> None:
        """On the server: write the sealed checkpoint."""
        if self.config.checkpoint is not None:
            write_checkpoint(self.config.checkpoint, total, round_index=round_index)

    def surrogate(self, model: nn.Module) -> Surrogate:
        """The public model: nothing of it is private."""
        silos = 3 if self._rounds is None else 1 + len(self._rounds.secrets.pairs)
        transform = SealTransform(entries_of(_tensors(model)), silos)
        return Surrogate(deepcopy(model), (), _nothing, transform)

    def twin(
        self, model: nn.Module, protected: nn.Module
    ) -> tuple[nn.Module, Mapping[str, Tensor]]:
        """The silo's own model, and what opens the message that was sealed last.

        From now on that is kept, in memory only.
        """
        private: Mapping[str, Tensor] = {}
        if self._rounds is not None:
            self._rounds.keep_own = True
            if self._rounds.record is not None and self._rounds.record.covers:
                private = self._rounds.record.tensors
        return deepcopy(protected), private

    @property
    def _writes_vault(self) -> bool:
        return self.config.checkpoint is not None or self.config.keep_history

    def _begun(self) -> Rounds:
        if self._rounds is None:
            raise HostError("the silos have no secret to seal with: name keylock.group_key")
        return self._rounds

    def _first(self, rounds: Rounds, first: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        digest = rounds.begin(first)
        wanted = self.config.first_model
        own = digest == self._own_model
        if wanted is not None and not (own if wanted == "own" else _is(digest, wanted)):
            raise UpdateRefused(
                f"round 0: the server's first model ({digest.hex()}) is not what "
                f"keylock.first_model asks for ({wanted})"
            )
        if own:
            logging.info("the first model is this silo's own; its digest is %s", digest.hex())
        elif wanted is None:
            logging.warning(
                "the first model is not the one that this silo built from the same code and seed: "
                "a server that chose it can make the average say mostly one silo's; pin it by "
                "keylock: {first_model: %s}",
                digest.hex(),
            )
        return first


def _diverged(round_index: int) -> str:
    return (
        f"round {round_index}: numbers of the silos' updates were NaN or infinite: "
        "training has diverged. The own log of the silo that sent them names the tensors; lower "
        "the learning rate, or clip gradients"
    )


def _on(model: nn.Module) -> Rounds:
    found = vars(model)[ATTRIBUTE]
    assert isinstance(found, Rounds)
    return found


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach() for n, t in model.state_dict().items() if isinstance(t, Tensor)}


def _is(digest: bytes, wanted: str) -> bool:
    """Whether a digest is that of a model that was named: in hexadecimal, or by a file."""
    path = Path(wanted)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return digest == digest_of(load_file(path))
    return digest.hex() == wanted.lower()


def _nothing(_count: int, _generator: torch.Generator) -> dict[str, Tensor]:
    """What there is to draw of unknowns in what silos compute."""
    return {}
