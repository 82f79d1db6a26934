"""A silo's part in a job."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import HostError, LockError, UpdateRefused, VaultError
from ..locks.group_key import group_secret
from ..types import JobSecrets
from .gate import HELLO, HELLOS, EntryNames, SiloGate
from .key_agreement import Handshake, agree
from .own_accuracy import measured
from .progress import note
from .roster import Roster
from .session import Session
from .silo_round import SiloRound

__all__ = ["SiloSession"]


@dataclass
class SiloSession(Session):
    """A rank that trains for a silo, or for many in turn.

    Attributes:
        silo: index of the silo that it works for, from 0; None in a rank that serves many in turn,
            until FedML says which one.
        gate: what its messages pass.

    """

    silo: int | None = None
    gate: SiloGate = field(init=False, repr=False)
    _locked_for: int | None = None
    _trained: int = 0
    _given: int = 0
    _shared: bool = False
    _handshake: Handshake | None = field(default=None, repr=False)
    _sealed: tuple[Any, Mapping[str, Tensor]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.gate = SiloGate(self._seal)
        if not self.in_turn:
            self.silo = self._locked_for = int(self.args.rank) - 1

    @property
    def who(self) -> str:
        """How messages name this rank."""
        rank = f"rank {self.args.rank}"
        name = rank if self.silo is None else f"silo {self.silo} ({rank})"
        return f"{name}, round {self.round}"

    @property
    def last_round(self) -> int:
        """Index of the round whose aggregate the server has sent last."""
        return self._trained - 1

    def see_data(self, dataset: Sequence[Any]) -> None:
        """Show FedML's dataset tuple to the rank's attacks on itself."""
        if self.observer.attacks_itself:
            super().see_data(dataset)

    def agree(self, dataset: Sequence[Any]) -> None:
        """Before FedML's messages begin: agree with the other silos on the secrets they need.

        Args:
            dataset: FedML's tuple, which says how many samples this silo has.

        Raises:
            ConfigError: see `Session.agree`.
            HostError: see `key_agreement.share_secrets`.

        """
        super().agree(dataset)
        credentials = self._credentials
        if self.defense is None or credentials is None:
            return
        rank, roster = int(self.args.rank), None
        if credentials.roster is not None:
            roster = Roster.load(credentials.roster, credentials.identity or "", rank=rank)
        self._handshake = Handshake(
            rank,
            _samples_of(dataset, self.silo),
            b"" if credentials.group_key is None else group_secret(credentials.group_key),
            roster,
        )
        if self._comm is not None:
            self._note("while agreeing on secrets with the other silos")
            self._share(agree(self._comm, self._handshake))

    def enter(self, silo: int) -> None:
        """Called when FedML gives this rank a silo's data: load the silo's private state.

        Raises:
            HostError: there is no such silo, or it is not the one whose lock this rank holds for
                the whole job.
            VaultError: the silo's vault cannot be read, or another process uses it.

        """
        if not 0 <= silo < int(self.args.client_num_in_total):
            raise HostError(f"{self.who}: FedML gave it the data of silo {silo}; there is none")
        if self.defense is not None and not self.in_turn and silo != self.silo:
            raise HostError(
                f"{self.who}: FedML gave it the data of silo {silo}, whose lock it lacks"
            )
        self.silo = silo
        # after the last round FedML gives each rank one more silo, for which there is nothing to do
        if self.defense is None or not self.in_turn or self._is_over():
            return
        if self.model is None:
            raise HostError(f"{self.who}: FedML gave it data before the job's model was locked")
        logging.info("%s: %s", self.who, self.defense.enter_silo(self.model, silo=silo))
        self._locked_for = silo

    def train(self, trainer: Any, data: Any, run: Callable[[], Any]) -> Any:
        """Run a silo's local training, watched by the defense and the observer.

        Args:
            trainer: FedML's.
            data: that it trains on.
            run: trains; gives a state, or a state and a number of samples.

        Raises:
            LockError: the model that trains is not the protected one, or the lock did not train.
            UpdateRefused: what was trained is another model, or gives away too much.

        """
        # the silo and the round may be others afterwards, where one process serves many
        turn = SiloRound(self.silo or 0, self.round, self.who, self.tell)
        self._note("while training")
        self.observer.round_begins(turn, self.model, data)
        result = run() if self.defense is None else self._train_locked(trainer, run)
        state = result[0] if isinstance(result, tuple) else result
        audited = self.defense is not None and self.observer.audits_update
        if audited and isinstance(state, Mapping):  # as it will be sent
            state = self._seal(state, float(result[1]) if isinstance(result, tuple) else 1.0)
        self.observer.round_ends(turn, state, data)
        self._trained += 1
        return result

    def report_accuracy(self, trainer: Any, data: Any, device: Any) -> None:
        """Report how well the model that the silo was just given does; see `own_accuracy`."""
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
            turn.tell_score("accuracy_with_own_key", share)
        else:
            self.defense.note(line, silo=turn.silo)

    def tests_now(self) -> bool:
        """Whether a silo that was just given a model tests it: when FedML's server does."""
        every = int(getattr(self.args, "frequency_of_the_test", 0) or 0)
        last = self.last_round
        if self.defense is None or not self.defense.own_accuracy or every < 1 or last < 0:
            return False
        # after the last round FedML gives a rank the data of a silo whose lock it does not have
        in_place = self._locked_for == self.silo
        return in_place and (last % every == 0 or last == int(self.args.comm_round) - 1)

    def emit(self, entries: dict[str, Any], names: EntryNames, receiver: int | None = None) -> None:
        """Check and make ready what the silo sends, and show it to the observer."""
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
            hellos = _hellos_in(entries.get(HELLOS), who=who)
            each = int(self.args.client_num_per_round)
            if len(hellos) != each:  # of two, one of which colludes, the sum is the other's
                raise UpdateRefused(
                    f"{who} came with the hellos of {len(hellos)} silos, and {each} take part: the "
                    "server has left some out, or its client_num_per_round is another"
                )
            self._share(self._handshake.complete(hellos))
        entries[names.state] = self._open(state)
        self._given = self._trained
        if self._trained >= int(self.args.comm_round):
            self.defense.finish(self._trained, silo=self.silo or 0)

    def dismiss(self) -> None:
        """Called when the server tells this silo that the job is over.

        Raises:
            UpdateRefused: it is not.

        """
        rounds = int(self.args.comm_round)
        if self.defense is not None and self._given < rounds:
            raise UpdateRefused(
                f"{self.who}: the server ends the job after {self._given} of {rounds} rounds, of "
                "which it has sent the averages"
            )

    def _prepare(self, model: nn.Module) -> None:
        self.observer.begin_audit(model, self.defense)
        if self.defense is not None:
            assert self.agreement is not None
            done = self.defense.protect(model, silo=self.silo, agreement=self.agreement)
            logging.info("%s: %s", self.who, done)

    def _share(self, secrets: JobSecrets) -> None:
        assert self.defense is not None
        self.defense.share(secrets)
        self._shared = True
        # with its private key whoever reads this memory later could open what was sent before
        self._handshake = None
        logging.info("%s: the silos have agreed on secrets", self.who)

    def _open(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What FedML is to load in place of what the server sent."""
        assert self.defense is not None
        if self.model is None:
            raise HostError(f"{self.who}: a model came before the job's own was locked")
        if self._credentials is not None and not self._shared:
            raise HostError(
                f"{self.who}: a model came before the silos had agreed on a secret: start the job "
                "by FedML's own FedMLRunner(args, device, dataset, model, ...).run()"
            )
        try:
            opened = self.defense.open(self.model, state, round_index=self.last_round)
        except UpdateRefused as error:
            raise UpdateRefused(f"{self.who}: {error}") from None
        if self._sealed is not None:
            # what FedML averages has the versions of modules that the silo's own state has
            versions = getattr(self._sealed[0], "_metadata", None)
            if versions is not None and not hasattr(opened, "_metadata"):
                opened._metadata = versions  # type: ignore[attr-defined]  # as in public_copy
            self._sealed = None  # a trainer may fill the same mapping again
        return opened

    def _seal(self, state: Mapping[str, Tensor], samples: float) -> Mapping[str, Tensor]:
        """What the defense sends in place of a state; of the same state the same."""
        assert self.defense is not None
        assert self.model is not None
        if self._sealed is not None and self._sealed[0] is state:  # it was audited as it is sent
            return self._sealed[1]
        try:
            sealed = self.defense.seal(self.model, state, samples=samples)
        except (UpdateRefused, VaultError) as error:
            raise type(error)(f"{self.who}: {error}") from None
        self._sealed = state, sealed
        return sealed

    def _train_locked(self, trainer: Any, run: Callable[[], Any]) -> Any:
        assert self.model is not None
        assert self.defense is not None
        held = getattr(trainer, "model", None)  # it may hold it by another name, or in a wrapper
        if not self.defense.wraps_model:
            held = None
        if isinstance(held, nn.Module) and not any(m is self.model for m in held.modules()):
            raise LockError(f"{self.who}: the trainer's model is not the one that was locked")
        try:
            self.defense.begin_round(self.model, round_index=self.round)
            with self._quietly():
                result = run()
            trained = self.defense.end_round(self.model, round_index=self.round)
        except VaultError as error:
            raise VaultError(f"{self.who}: {error}") from None
        if trained is False:
            self._check_untrained(result[0] if isinstance(result, tuple) else result)
        return result

    @property
    def _tells_accuracy(self) -> bool:
        """Whether what is measured in the silo leaves it."""
        return self.defense is None or self.defense.tells_accuracy

    @property
    def _logs_training(self) -> bool:
        """Whether what is logged of the training leaves the silo."""
        return self.defense is None or self.defense.log_training

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Drop what is logged of the training, up to warnings.

        FedML's trainers log every batch's loss, and mpiexec carries that to the server's host. Of a
        model that the server knows, it tells the label, and which of some images it was.
        """
        if self._logs_training:
            yield
            return
        level = logging.root.manager.disable
        logging.disable(max(level, logging.INFO))
        try:
            yield
        finally:
            logging.disable(level)

    def _check_untrained(self, state: Any) -> None:
        """Refuse what a silo trained in another model than the locked one, such as a copy of it."""
        assert self.model is not None
        own = self.model.state_dict()
        for name, tensor in state.items() if isinstance(state, Mapping) else ():
            if not isinstance(tensor, Tensor) or name not in own or not tensor.any():
                continue
            if not torch.equal(tensor.cpu(), own[name].cpu()):
                raise UpdateRefused(
                    f"{self.who}: what it would send was not trained in the locked model, which no "
                    f"gradient reached ({name} differs); train the model that FedML gives the "
                    "trainer, and not a copy of it"
                )

    def _note(self, doing: str) -> None:
        """Note what this rank is doing, for the line that reports it if it is killed."""
        note(f"rank {self.args.rank}: {self.who}: {doing}")

    def _is_over(self) -> bool:
        """Whether the last round was trained."""
        return self._trained >= int(self.args.comm_round)


def _samples_of(dataset: Sequence[Any], silo: int | None) -> float:
    """How many samples a silo has, as FedML reads it; 0 where that is not known."""
    if silo is None or dataset[4] is None:
        return 0.0
    try:
        return float(dataset[4][silo])
    except (KeyError, IndexError, TypeError, ValueError):
        return 0.0


def _hellos_in(entry: Any, *, who: str) -> dict[int, bytes]:
    """The silos' hellos, by rank, as the server passes them on.

    Raises:
        UpdateRefused: there are none, or they are something else.

    """
    try:
        pairs = (said.split(":") for said in str(entry).split(","))
        return {int(rank): bytes.fromhex(hello) for rank, hello in pairs}
    except ValueError:
        raise UpdateRefused(
            f"{who} came without the silos' hellos: the plugin is not active on the server. Start "
            "every rank with `python -m fedml_keylock` and the same YAML"
        ) from None
