"""Runs a silo's part in a job."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..errors import HostError, KeyLockError, UpdateRefused, VaultError
from ..types import JobSecrets
from .armed_layers import ModelGuard
from .gate import HELLO, HELLOS, EntryNames, SiloGate, check_hellos, check_samples
from .job_configuration import silo_in_turn
from .key_agreement import Handshake, agree
from .own_accuracy import is_due, measured
from .progress import note, tell
from .session import Session
from .silo_round import SiloRound
from .silo_training import check_trainer, check_untrained, quietly

__all__ = ["SiloSession"]


@dataclass
class SiloSession(Session):
    """A rank that trains for a silo, or for many in turn.

    Attributes:
        silo: index of its current silo, from 0; None in a rank that serves many in turn, until
            FedML names one.
        gate: for its messages.
        given: how many averages it has received; -1 before the first model.
        greeting: prefix of its hellos over MPI; see `key_agreement.agree`.

    """

    silo: int | None = None
    gate: SiloGate = field(init=False, repr=False)
    given: int = -1
    greeting: bytes = field(default=b"", repr=False)
    _locked_for: int | None = None
    _trained: int = 0
    _shared: bool = False
    _said: float | None = None
    _handshake: Handshake | None = field(default=None, repr=False)
    _guard: ModelGuard = field(default_factory=ModelGuard, repr=False)
    _audited: tuple[Any, Mapping[str, Tensor]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.gate = SiloGate(self._release)
        if not self.in_turn:
            self.silo = self._locked_for = int(self.args.rank) - 1

    @property
    def who(self) -> str:
        """The rank's name in messages."""
        rank = f"rank {self.args.rank}"
        name = rank if self.silo is None else f"silo {self.silo} ({rank})"
        return f"{name}, round {self.round}"

    @property
    def last_round(self) -> int:
        """Index of the last round whose aggregate the server has sent."""
        return self._trained - 1

    def see_data(self, dataset: Sequence[Any]) -> None:
        """Show FedML's dataset tuple to the rank's attacks on itself."""
        if self.observer.attacks_itself:
            super().see_data(dataset)

    def agree(self, dataset: Sequence[Any]) -> None:
        """Before FedML's messages begin: agree with the other silos on secrets.

        Raises:
            ConfigError: see `Session.agree`.
            HostError: see `key_agreement.agree`.

        """
        super().agree(dataset)
        credentials = self._credentials
        if self.defense is None or credentials is None:
            return
        samples = 0.0
        if self._comm is None and self.silo is not None:  # silos cannot tell one another later
            samples = self._said = self.check_samples(
                None if dataset[4] is None else dataset[4][self.silo]
            )
        self._handshake = Handshake.of(credentials, int(self.args.rank), samples)
        if self._comm is not None:
            self._note("while agreeing on secrets with the other silos")
            self._share(agree(self._comm, self._handshake, greeting=self.greeting))

    def enter(self, silo: int) -> None:
        """Called when FedML gives this rank a silo's data: load the silo's private state.

        Raises:
            HostError: there is no such silo, or this rank must not work for it.
            VaultError: the silo's vault cannot be read, or another process uses it.

        """
        if not 0 <= silo < int(self.args.client_num_in_total):
            raise HostError(f"{self.who}: FedML gave it the data of silo {silo}; there is none")
        chosen = self._chosen()
        if self.defense is not None and chosen not in (silo, None):
            raise HostError(
                f"{self.who}: FedML gave it the data of silo {silo}, and by FedML's own choice it "
                f"works for silo {chosen}; a server must not choose who takes part"
            )
        self.silo = silo
        # after the last round FedML gives each rank one more silo, which has nothing to do
        if self.defense is None or not self.in_turn or self._is_over():
            return
        assert self.model is not None
        logging.info("%s: %s", self.who, self.defense.enter_silo(self.model, silo=silo))
        self._locked_for = silo

    def check_samples(self, samples: Any) -> float:
        """Check, before training, the number of samples with which FedML weights this silo.

        Raises:
            HostError: under a defense it is not a valid weight, or differs from what silos were
                told.

        """
        if self.defense is None or self._is_over():
            return 0.0
        what = f"{self.who}: its number of samples, dataset[4][{self.silo}],"
        try:
            number = self.defense.weigh(check_samples(samples, who=what))
        except UpdateRefused as error:
            raise HostError(f"{error}; leave a silo without data out of the job") from None
        if self.seals and self._said not in (None, number):
            raise HostError(
                f"{what} has changed since the job began, and over this backend silos use the "
                "first one as its weight: keep it as it is, or use backend: MPI"
            )
        return number

    def train(self, trainer: Any, data: Any, run: Callable[[Any], Any]) -> Any:
        """Run a silo's local training, watched by the defense and the observer.

        Args:
            trainer: FedML's.
            data: the silo's.
            run: trains on data; returns a state, or a state and a number of samples.

        Raises:
            LockError: the trained model is not the protected one, or the lock did not train.
            UpdateRefused: another model was trained, an audit's limit was exceeded, or the job's
                rounds are over.

        """
        if self.defense is not None and self._is_over():  # a server may restart FedML's count
            raise UpdateRefused(
                f"{self.who}: the server asks for a round beyond the {self.args.comm_round} of the "
                "job; nothing is trained"
            )
        # where one process serves many, silo and round may have changed afterwards
        turn = SiloRound(self.silo or 0, self.round, self.who, self.tell)
        self._note("while training")
        self.observer.round_begins(turn, self.model, data)
        if self.defense is None:
            result = run(data)
        else:
            result, data = self._train_locked(trainer, data, run)
        state = result[0] if isinstance(result, tuple) else result
        if self.defense and self.observer.audits_update and isinstance(state, Mapping):
            sealed = self._seal(state, float(result[1]) if isinstance(result, tuple) else 1.0)
            self._audited = state, sealed  # as it will be sent
            state = sealed
        self.observer.round_ends(turn, state, data)
        self._trained += 1
        return result

    def report_accuracy(self, trainer: Any, data: Any, device: Any) -> None:
        """Report the accuracy of the model that the silo just received; see `own_accuracy`."""
        if data is None or self.model is None or not self.tests_now():
            return
        assert self.defense is not None
        share = measured(trainer, self.model, data, device, self.args, who=self.who)
        if share is None:
            return
        turn = SiloRound(self.silo or 0, self.last_round, self.who, self.tell)
        line = (
            f"silo {turn.silo}, aggregate of round {turn.round}: accuracy in the silo {share:.4f}"
        )
        if self._tells_accuracy:
            logging.info(line)
            tell(silo=turn.silo, tested=turn.round, accuracy=share)
            turn.tell_score("accuracy_with_own_key", share)
        else:
            self.defense.note(line, silo=turn.silo)

    def _report_privacy(self, turn: SiloRound) -> None:
        """Report what a silo has spent, including this round."""
        loss = None if self.defense is None else self.defense.privacy_loss(turn.silo)
        if loss is not None:
            logging.info("silo %d, round %d: %s", turn.silo, turn.round, loss)
            tell(privacy=str(loss), epsilon=float(loss.epsilon))
            turn.tell_score("epsilon", loss.epsilon)

    def _report_canaries(self, silo: int) -> None:
        """Report, after the last round, the canaries' estimate of epsilon."""
        found = None if self.defense is None else self.defense.privacy_estimate()
        if found is not None:
            logging.info("silo %d: canaries: %s", silo, found)
            turn = SiloRound(silo, self.last_round, self.who, self.tell)
            turn.tell_score("epsilon_of_canaries", found.epsilon)

    def tests_now(self) -> bool:
        """Whether a silo tests the model that it just received: when FedML's server does."""
        if self.defense is None or not self.defense.own_accuracy:
            return False
        # after the last round FedML gives a rank the data of a silo whose lock it does not have
        return self._locked_for == self.silo and is_due(self.args, self.last_round)

    def emit(self, entries: dict[str, Any], names: EntryNames, receiver: int | None = None) -> None:
        """Check and prepare what the silo sends, and show it to the observer."""
        if entries.get(names.state) is not None:
            self._note("while uploading")
        if self.defense is None:
            return
        state = self.gate.emit(entries, names, self._agreed(), who=self.who)
        if state is None and self._handshake is not None and self._comm is None:
            entries[HELLO] = self._handshake.hello.hex()
        if state is not None and not self.defense.tells_samples:
            entries[names.samples] = 1
        if state is not None:
            samples = float(entries.get(names.samples, 1))
            self.observer.show("before_upload", state, samples, self.silo, self.round)
            self._report_privacy(SiloRound(self.silo or 0, self.round, self.who, self.tell))

    def sent(self) -> None:
        """Called after a message was sent."""
        self._note("while waiting for the server")

    def admit(self, entries: dict[str, Any], names: EntryNames, sender: int) -> None:
        """Check the server's model, and open it; see `Session.admit`."""
        if self.defense is None or entries.get(names.state) is None:
            return
        who = f"{self.who}: the server's model"
        state, nonce = self.gate.admit(entries, names, self._agreed(), who=who)
        self.defense.begin_job(nonce)
        self.observer.received = state
        if self._handshake is not None and not self._shared:
            silos = int(self.args.client_num_per_round)
            hellos = check_hellos(entries.get(HELLOS), silos=silos, who=who)
            self._share(self._handshake.complete(hellos))
        entries[names.state] = self._open(state)
        self.given = self._trained
        if self._is_over():
            self.defense.finish(self._trained, silo=self.silo or 0)
            self._report_canaries(self.silo or 0)

    def dismiss(self) -> None:
        """Called when the server tells this silo that the job is over.

        Raises:
            UpdateRefused: the job is not over.

        """
        rounds = int(self.args.comm_round)
        if self.defense is not None and self.given < rounds:
            raise UpdateRefused(
                f"{self.who}: the server ends the job after {max(0, self.given)} of {rounds} "
                "rounds, of which it has sent the averages"
            )

    def _prepare(self, model: nn.Module) -> None:
        self.observer.begin_audit(model, self.defense)
        if self.defense is not None:
            done = self.defense.protect(model, silo=self.silo, agreement=self._agreed())
            logging.info("%s: %s", self.who, done)

    def _share(self, secrets: JobSecrets) -> None:
        assert self.defense is not None
        self.defense.share(secrets)
        self._shared = True
        # whoever reads this memory later could open earlier messages with the private key
        self._handshake = None
        logging.info("%s: the silos have agreed on secrets", self.who)

    def _open(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What FedML is to load in place of what the server sent."""
        assert self.defense is not None
        assert self.model is not None
        if self._credentials is not None and not self._shared:
            raise HostError(
                f"{self.who}: a model arrived before the silos had agreed on a secret: start the "
                "job by FedML's own FedMLRunner(args, device, dataset, model, ...).run()"
            )
        try:
            opened = self.defense.open(self.model, state, round_index=self.last_round)
        except UpdateRefused as error:
            raise self._located(error) from None
        if not (self.seals and self._trained):  # later a seal's server cannot choose
            self._guard.look(opened, self.model.state_dict(), who=self.who)
        return opened if self.seals else self.with_integers(opened)

    def _located(self, error: KeyLockError) -> KeyLockError:
        """A defense's error with the silo's name, and the round named once."""
        return type(error)(f"{self.who}: " + str(error).removeprefix(f"round {self.round}: "))

    def _release(self, state: Mapping[str, Tensor], samples: float) -> Mapping[str, Tensor]:
        """What is sent in place of a state: the audited one, or else the state sealed."""
        audited, self._audited = self._audited, None
        if audited is not None and audited[0] is state:
            return audited[1]
        return self._seal(state, samples)

    def _seal(self, state: Mapping[str, Tensor], samples: float) -> Mapping[str, Tensor]:
        """What the defense sends in place of a state."""
        assert self.defense is not None
        assert self.model is not None
        try:
            weight = self.defense.weigh(samples)
            return self.defense.seal(self.model, state, samples=weight)
        except (UpdateRefused, VaultError) as error:
            raise self._located(error) from None

    def _train_locked(self, trainer: Any, data: Any, run: Callable[[Any], Any]) -> tuple[Any, Any]:
        """The result of training, and the data used."""
        assert self.model is not None
        assert self.defense is not None
        if self.defense.wraps_model:
            check_trainer(trainer, self.model, who=self.who)
        try:
            self.defense.begin_round(self.model, round_index=self.round)
            given = self.defense.batches(data, silo=self.silo or 0)
            with quietly(self._logs_training):
                result = run(given)
            trained = self.defense.end_round(self.model, round_index=self.round)
        except VaultError as error:
            raise self._located(error) from None
        if trained is False:
            sent = result[0] if isinstance(result, tuple) else result
            check_untrained(sent, self.model.state_dict(), who=self.who)
        return result, given

    @property
    def _tells_accuracy(self) -> bool:
        """Whether accuracies measured in the silo leave it."""
        return self.defense is None or self.defense.tells_accuracy

    @property
    def _logs_training(self) -> bool:
        """Whether logs of the training leave the silo."""
        return self.defense is None or self.defense.log_training

    def _note(self, doing: str) -> None:
        """Note what this rank is doing, for the report if it is killed."""
        note(f"rank {self.args.rank}: {self.who}: {doing}")

    def _chosen(self) -> int | None:
        """The silo that this rank must work for; None for any."""
        if not self.in_turn:
            return self.silo
        return silo_in_turn(self.args, self._trained) if self.seals else None

    def _is_over(self) -> bool:
        """Whether the last round has been trained."""
        return self._trained >= int(self.args.comm_round)
