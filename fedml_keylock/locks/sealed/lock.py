"""`lock: sealed`: exact secure aggregation that silos verify."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...disk import make_folder
from ...errors import ConfigError, HostError, LockError, UpdateRefused
from ...privacy.accounts import Accounts
from ...privacy.canaries import CanaryEstimate
from ...tensors import copy_of, deep_copy, with_versions
from ...types import AttackerModel, JobSecrets, PrivacyLoss, Schedule
from ..config import KeyLockConfig
from ..description import LockInfo
from ..entropy import Uniform
from ..private import ATTRIBUTE
from ..wire import WireLock, no_unknowns, state_tensors
from .canary_release import CanaryWatch, released
from .entries import entries_of
from .first_model import FirstModel
from .job_examples import JobExamples
from .job_noise import JobNoise
from .model_files import (
    CHECKPOINT,
    FINAL,
    check_place,
    open_checkpoint,
    read_round,
    write_checkpoint,
    write_model,
)
from .neighbours import check_colluders
from .record import Record
from .rehearsal import check_counts, rehearse
from .rounds import Rounds
from .seal_transform import SealTransform, noise_like
from .sealing import TRAILER, add_up

__all__ = ["SealedLock"]


class SealedLock(WireLock):
    """`lock: sealed`: the model stays as it is; updates leave the silo as words only silos open.

    Example:
        >>> SealedLock(KeyLockConfig()).title
        'keylock:sealed'

    """

    HANDLE = Rounds
    SENT = "sealed"
    SUMMARY = "leave the silo as words that only silos open"

    def __init__(self, config: KeyLockConfig) -> None:
        super().__init__(config)
        self._rounds: Rounds | None = None
        self._first = FirstModel(config.first_model)
        noise = config.noise
        self._noise: JobNoise | None = None
        self._accounts: Accounts | None = None
        if noise is not None:
            kind = JobNoise if noise.unit == "silo" else JobExamples
            self._noise = kind(noise, config.colluders or 0)
            self._accounts = Accounts(noise, config.colluders or 0, config.vault)
        self._canaries = CanaryWatch(noise) if noise is not None and noise.canaries else None
        self._silo = 0

    @property
    def title(self) -> str:
        """The name in reports."""
        return "keylock:sealed"

    @property
    def server_reads(self) -> str:
        """Nothing that depends on data, but for what the settings tell."""
        told = {"tell_samples": "numbers of samples", "tell_accuracy": "accuracies"}
        also = [f"; silos' {what}" for name, what in told.items() if getattr(self.config, name)]
        return "no update and no average; names, shapes, who takes part, when" + "".join(also)

    # on a model

    def _locked_names(self, model: nn.Module) -> set[str]:
        state = state_tensors(model)
        try:
            entries_of(state)
        except UpdateRefused as error:
            raise LockError(str(error)) from None
        if not state:
            raise LockError(f"{type(model).__name__} has no parameters to lock")
        return {*state}

    def _handle(self, model: nn.Module, secret: bytes) -> Rounds:
        rounds = Rounds(JobSecrets(secret), scale=self.config.scale)
        rounds.begin(state_tensors(model))
        return rounds

    @staticmethod
    def private_tensors(model: nn.Module) -> dict[str, Tensor]:
        """The record of the last sealed round; empty before the first."""
        record = _on(model).record
        return {} if record is None else record.tensors

    @staticmethod
    def load_private(model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Put a record back; see `Lock.load_private`."""
        _on(model).record = Record.from_tensors(state) if state else None

    @staticmethod
    def secret_variables(model: nn.Module) -> dict[str, Tensor]:
        """A round's record; for an audit it includes the keys that open the silo's own message."""
        return SealedLock.private_tensors(model)

    def check_fit(
        self,
        model: nn.Module,
        state: Mapping[str, Tensor],
        constants: Mapping[str, float],
        source: Path,
    ) -> None:
        """Nothing: a sealed checkpoint opens or does not."""
        if TRAILER not in state:
            super().check_fit(model, state, constants, source)

    def needs_vault(self, state: Mapping[str, Tensor]) -> bool:
        """True for a sealed checkpoint; files of `save_model` are open."""
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
        own = model.state_dict()
        model.load_state_dict(with_versions(opened, own), strict=opened.keys() == own.keys())

    def load_round(
        self,
        model: nn.Module,
        state: Mapping[str, Tensor],
        *,
        round_index: int | None,
        source: Path,
    ) -> None:
        """Load the model that the silo had opened when the round began, or open the last sum."""
        record = _on(model).record
        if record is not None and round_index is not None:
            state = record.encoding.base
        elif record is not None and TRAILER in state:
            state = open_checkpoint(record, state, round_index=None, source=source)
        own = model.state_dict()
        model.load_state_dict(with_versions({**own, **state}, own))

    @staticmethod
    def deployed(model: nn.Module, *, silo: int, round_index: int) -> tuple[str, str]:
        """The average of a round, in the clear."""
        return f"opened by silo {silo}", "the model that the server cannot read"

    def as_outsider(
        self, model: nn.Module, own: Callable[[], nn.Module], uniform: Uniform | None
    ) -> nn.Module:
        """The model as read from the words without keys: noise of the model's size."""
        outside = deep_copy(model)
        noise = noise_like(state_tensors(model), uniform)
        outside.load_state_dict(with_versions(noise, model.state_dict()))
        return outside

    # as a job's defense

    @property
    def seals(self) -> bool:
        """True: the server gets sealed words."""
        return True

    @property
    def adds_noise(self) -> bool:
        """True with `noise:`."""
        return self._noise is not None

    @property
    def tells_samples(self) -> bool:
        """Whether the server is told how many samples each silo has."""
        return self.config.tell_samples

    @property
    def tells_accuracy(self) -> bool:
        """Whether silos' own accuracies leave them."""
        return self.config.tell_accuracy

    @property
    def multiplier(self) -> float | None:
        """The noise in a sum divided by the clip; None without noise, or before `schedule`."""
        return self._accounts.multiplier if self._accounts else None

    def schedule(self, schedule: Schedule) -> int:
        """Solve for the job's noise, and stop where its budget ends; see `Budget.of`."""
        if self._accounts is None or self._noise is None:
            return super().schedule(schedule)
        rounds = self._accounts.plan(schedule)
        self._noise.multiplier = self.multiplier
        return rounds

    def weigh(self, samples: float) -> float:
        """The silo's weight; 1 under noise, as weights are public; see `Accounts.weigh`."""
        return self._accounts.weigh(samples) if self._accounts else samples

    def privacy_loss(self, silo: int) -> PrivacyLoss | None:
        """What a silo has spent so far, including earlier jobs of its vault."""
        return self._accounts.loss(silo) if self._accounts else None

    def privacy_estimate(self) -> CanaryEstimate | None:
        """The canaries' estimate of epsilon, in the silo that adds them."""
        if self._canaries is None or self.multiplier is None:
            return None
        return self._canaries.estimate(self.multiplier)

    def share(self, secrets: JobSecrets) -> None:
        """Set the secrets that the silos have agreed on.

        Raises:
            ConfigError: colluding silos would leave fewer than two others.

        """
        colluders = self.config.colluders
        check_colluders(1 + len(secrets.pairs), colluders)
        self._rounds = Rounds(
            secrets, colluders, self.config.scale, keep_own=self.config.keep_history
        )
        if self._noise is not None:
            self._noise.silos = 1 + len(secrets.pairs)

    def lock_for_job(self, model: nn.Module) -> LockInfo:
        """Only remember the model before the server sends its own; nothing in it changes."""
        self.plan(model)
        self.remember(model)
        if self._accounts is not None:
            self._accounts.tell(self.noised_numbers(model))
        return self.info(model)

    def noised_numbers(self, model: nn.Module) -> int:
        """How many of the model's numbers train."""
        if self._noise is None:
            return 0
        state = state_tensors(model)
        self._noise.look(model)
        update = [state[n] for n, part in self._noise.parts(state).items() if part == "update"]
        return sum(tensor.numel() * (1 + tensor.is_complex()) for tensor in update)

    def remember(self, model: nn.Module) -> None:
        """Remember this silo's own first model."""
        self._first.remember(state_tensors(model))
        if self._noise is not None:
            self._noise.look(model)

    def enter_silo(self, model: nn.Module, *, silo: int) -> str:
        """Claim the silo's vault if anything is to be written to it.

        Raises:
            ConfigError: the final model or the silo's own log cannot be written.

        """
        self._silo = silo
        if self._accounts is not None:
            self._accounts.enter(silo)
        if self.own_accuracy and not self.tells_accuracy:
            make_folder(self.config.vault)
            check_place(self.config.vault / f"silo-{silo}.log", what="keylock.vault:")
        if self.config.save_model is not None:
            check_place(self._final(silo), what=FINAL)
        if not self._writes_vault:
            return "no private state to keep"
        return f"opens checkpoints by {self._claim(silo).path}"

    def begin_round(self, model: nn.Module, *, round_index: int) -> None:
        """Nothing, except under noise of single examples."""
        if self._noise is not None:
            self._noise.begin(model)

    def batches(self, data: Any, *, silo: int) -> Any:
        """The silo's data; under noise of single examples, secret batches drawn from it."""
        return data if self._noise is None else self._noise.batches(data, self._begun().told)

    def end_round(self, model: nn.Module, *, round_index: int) -> bool:
        """Nothing, except under noise of single examples."""
        if self._noise is not None:
            self._noise.end()
        return True

    def seal(
        self, model: nn.Module, payload: Mapping[str, Tensor], *, samples: float
    ) -> Mapping[str, Tensor]:
        """What is sent in place of a payload."""
        rounds, release = self._begun(), None
        if self._noise is not None:
            self._noise.look(model)
            if not self._in_turn:  # in turn, the next round of this rank is another silo's
                self._noise.keep(payload)
            payload = self._noise.outgoing(payload, rounds.base, samples)
            # one rank of the job adds the canaries, whichever silo it serves in the round
            release = released(self._noise, payload, self._canaries, rounds.secrets.silo)
        if self._accounts is not None:
            self._accounts.spend(self._silo)
        message, counts = rounds.seal(payload, samples=samples, release=release)
        if self._noise is not None:
            self.note(f"round {rounds.round}: {self._noise.done}", silo=self._silo)
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
        """What FedML loads: the first model as it is, then verified averages."""
        rounds = self._begun()
        if TRAILER not in message:
            again = rounds.begun
            digest = rounds.begin(message)
            if not again:
                self._first.check(message, digest)
            return message
        opened = rounds.open(message)
        done = rounds.round - 1
        check_counts(opened, done)
        if opened.counts.clipped:
            # not on standard output, which the server's host reads: a server that chose the model
            # chose what clips in it
            self.note(
                f"round {done}: {opened.counts.clipped} numbers of all silos' updates were clipped "
                "to the range of a round",
                silo=self._silo,
            )
        if self._canaries is not None:
            self._canaries.see(opened.state, rounds.record)
        state = opened.state if self._noise is None else self._noise.opened(opened)
        return with_versions(state, model.state_dict())

    def finish(self, rounds: int, *, silo: int) -> None:
        """After the last round: compare models with the other silos, and write the open model."""
        held = self._begun()
        held.agreed()
        if self.config.save_model is not None:
            write_model(self._final(silo), held.base, rounds=rounds)
            logging.info("silo %d: the final model is in %s", silo, self._final(silo))

    def add_up(self, messages: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """On the server: add up a round's messages, and write the checkpoint."""
        return add_up(messages)

    def rehearse(
        self,
        base: Mapping[str, Tensor],
        updates: Sequence[tuple[float, Mapping[str, Tensor]]],
    ) -> tuple[list[Mapping[str, Tensor]], Mapping[str, Tensor]]:
        """Run one round of all silos in one process, with secrets of its own."""
        if self._accounts is not None:
            self._accounts.spend_entered()
        config = self.config
        return rehearse(base, updates, config.colluders, config.scale, self._noise, self._canaries)

    def enter_server(self) -> None:
        """On the server: check that a checkpoint can be written.

        Raises:
            ConfigError: the file cannot be written.

        """
        if self.config.checkpoint is not None:
            check_place(self.config.checkpoint, what=CHECKPOINT)

    def keep(self, total: Mapping[str, Tensor], *, round_index: int) -> None:
        """On the server: write the sealed checkpoint."""
        if self.config.checkpoint is not None:
            write_checkpoint(self.config.checkpoint, total, round_index=round_index)

    def attacker_model(self, model: nn.Module) -> AttackerModel:
        """The public model: no part of it is private."""
        silos = 3 if self._rounds is None else 1 + len(self._rounds.secrets.pairs)
        if self._noise is not None:
            self._noise.look(model)
        transform = SealTransform(entries_of(state_tensors(model)), silos, self._noise)
        return AttackerModel(copy_of(model), (), no_unknowns, transform)

    def baseline(
        self, model: nn.Module, protected: nn.Module
    ) -> tuple[nn.Module, Mapping[str, Tensor]]:
        """The silo's own model, opened from its last sealed message.

        From the first call on, the keys that open its messages are kept, in memory only.
        """
        private: Mapping[str, Tensor] = {}
        if self._rounds is not None:
            self._rounds.keep_own = True
            if self._rounds.record is not None and self._rounds.record.covers:
                private = self._rounds.record.tensors
        return copy_of(protected), private

    def _final(self, silo: int) -> Path:
        assert self.config.save_model is not None
        return self.config.save_model / f"silo-{silo}.safetensors"

    @property
    def _writes_vault(self) -> bool:
        return self.config.checkpoint is not None or self.config.keep_history

    def _begun(self) -> Rounds:
        if self._rounds is None:
            raise HostError("the silos have no secret to seal with: name keylock.group_key")
        return self._rounds


def _on(model: nn.Module) -> Rounds:
    found = vars(model)[ATTRIBUTE]
    assert isinstance(found, Rounds)
    return found
