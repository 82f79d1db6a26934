"""One rank's part in one job: its flags, its protected model, and what its gates hold to."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..errors import HostError, LockError, UpdateRefused, VaultError
from ..plugins import defense_of
from ..types import Agreement, Defense, SharesSecret
from .asked import check_asked
from .averaging import Averages
from .duplicates import Replays
from .flags import (
    Arguments,
    adds_noise,
    check_noise,
    check_supported,
    check_then,
    our_attack,
    our_defense,
)
from .gate import (
    MARK,
    NUMBER,
    check_attackable,
    check_mark,
    check_names,
    check_number,
    check_samples,
    check_state,
    pinned,
    public_copy,
)
from .observer import Observer
from .progress import note
from .sharing import is_masked, share
from .silo_round import SiloRound, Tell

__all__ = ["Session"]


def _nowhere(_metrics: dict[str, Any]) -> None:
    """Where metrics go until FedML's channels are known."""


@dataclass
class Session:
    """One rank of one job.

    Attributes:
        args: FedML's arguments.
        name: the defense's name, or None when only attacks are asked for.
        defense: the defense, or None.
        observer: what updates are shown to.
        silo: index of the silo that this rank works for, from 0; None on the server, and in a rank
            that serves many in turn until FedML says which one.
        tell: takes metrics, for FedML's own channels.

    """

    args: Arguments
    name: str | None
    defense: Defense | None
    observer: Observer
    model: nn.Module | None = None
    agreement: Agreement | None = None
    silo: int | None = None
    tell: Tell = _nowhere
    _sent: Any = None
    _silo_of: dict[int, int] = field(default_factory=dict)
    _locked_for: int | None = None
    _trained: int = 0
    _first: tuple[int, str, frozenset[str]] | None = None
    _replays: Replays = field(default_factory=Replays)
    _averages: Averages | None = None
    _next: int = 0
    _shared: bool = False
    _number: str = field(default_factory=lambda: os.urandom(16).hex())

    ends_with_runner: ClassVar[bool] = True
    """Whether the job is over when FedML's runner has been made."""

    def __post_init__(self) -> None:
        if self.is_silo and not self.in_turn:
            self.silo = self._locked_for = int(self.args.rank) - 1

    @classmethod
    def begin(cls, args: Arguments) -> Self | None:
        """The session that this job's flags ask for, or None when they ask for nothing.

        Raises:
            ConfigError: a field is wrong, or would be ignored.
            HostError: the job is of a kind that the defense has not been shown to work in.

        """
        check_asked(args)
        name = our_defense(args)
        if name is None and not our_attack(args):
            return None
        check_supported(args)
        defense = defense_of(name, getattr(args, name, None) or {}) if name else None
        session = cls(args, name, defense, Observer.begin(args, defended=name is not None))
        check_then(args, name, session.then)
        return session

    @property
    def then(self) -> str | None:
        """FedML's own defense that its server is to run on what silos send, if any."""
        return self.defense.then if self.defense else None

    @property
    def is_server(self) -> bool:
        """Whether this rank is the server's."""
        return bool(self.args.role == "server")

    @property
    def is_silo(self) -> bool:
        """Whether this rank trains for silos."""
        return not self.is_server

    @property
    def in_turn(self) -> bool:
        """Whether there are more silos than ranks, so that a rank serves another in each round."""
        total, each = (getattr(self.args, f"client_num_{n}", 0) for n in ("in_total", "per_round"))
        return int(total) > int(each)

    @property
    def who(self) -> str:
        """How messages name this rank."""
        if self.is_server:
            return "the server"
        rank = f"rank {self.args.rank}"
        name = rank if self.silo is None else f"silo {self.silo} ({rank})"
        return f"{name}, round {self.round}"

    @property
    def round(self) -> int:
        """Index of the round, from 0."""
        return int(getattr(self.args, "round_idx", None) or 0)

    @property
    def last_round(self) -> int:
        """In a silo: index of the round whose aggregate the server has sent last."""
        return self._trained - 1

    def tests_now(self) -> bool:
        """Whether a silo that was just given a model is to test it: when FedML's server does."""
        every = int(getattr(self.args, "frequency_of_the_test", 0) or 0)
        rounds, last = int(self.args.comm_round), self.last_round
        if self.defense is None or not self.defense.own_accuracy:
            return False
        if not self.is_silo or every < 1 or last < 0:
            return False
        # after the last round FedML gives a rank the data of a silo whose lock it does not have
        return self._locked_for == self.silo and (last % every == 0 or last == rounds - 1)

    def see_data(self, dataset: Sequence[Any]) -> None:
        """Show FedML's dataset tuple to whoever attacks on this rank."""
        if self.is_server or self.observer.attacks_itself:
            self.observer.see_data(dataset)

    def adopt(self, model: nn.Module) -> None:
        """Take the job's model: describe it, and in a silo protect it. Again for the same: nothing.

        Raises:
            LockError: the model cannot be locked so.

        """
        if model is self.model:
            return
        if not isinstance(model, nn.Module):
            raise LockError(f"the job's model is a {type(model).__name__}, not a torch module")
        if self.defense is not None:
            self.agreement = self.defense.describe(model)
            check_then(self.args, self.name, self.then, self.agreement.shapes)
            check_noise(self.args, self.agreement.dtypes)
        self.observer.see_model(
            model, self.agreement, self.defense, name=self.name, server=self.is_server
        )
        if self.defense is not None and self.is_silo:
            assert self.agreement is not None
            done = self.defense.protect(model, silo=self.silo, agreement=self.agreement)
            logging.info("%s: %s", self.who, done)
        self.model = model

    def agree(self, dataset: Sequence[Any]) -> None:
        """Before FedML's messages begin: silos agree with one another on what locks need.

        Args:
            dataset: FedML's tuple, which says how many samples this silo has.

        Raises:
            ConfigError: see `sharing.share`.
            HostError: see there.

        """
        if self.is_silo and isinstance(self.defense, SharesSecret):
            self._note("while agreeing on a secret with the other silos")
        samples = 0 if self.silo is None else int(dict(dataset[4] or {}).get(self.silo, 0))
        done = share(self.defense, self.args, samples=samples, in_turn=self.in_turn)
        self._shared = True
        masked = is_masked(self.defense, self.args, in_turn=self.in_turn)
        if self.is_server and masked and not adds_noise(self.args):
            self._averages = Averages()
        if done:
            logging.info("%s: %s", self.who, done)

    def enter(self, silo: int) -> None:
        """FedML gives this rank a silo's data: its private state comes with it.

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
        if self.defense is None or not self.in_turn or self._finished():
            return
        if self.model is None:
            raise HostError(f"{self.who}: FedML gave it data before the job's model was locked")
        logging.info("%s: %s", self.who, self.defense.enter_silo(self.model, silo=silo))
        self._locked_for = silo

    def train(self, trainer: Any, data: Any, run: Callable[[], Any]) -> Any:
        """Run a silo's local training under the defense's and the observer's eyes.

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
            state = self._released(state, result[1] if isinstance(result, tuple) else 1)
        self.observer.round_ends(turn, state, data)
        self._trained += 1
        return result

    def _train_locked(self, trainer: Any, run: Callable[[], Any]) -> Any:
        assert self.model is not None
        assert self.defense is not None
        held = getattr(trainer, "model", None)  # it may hold it by another name, or in a wrapper
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

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """In a silo of its own: drop what is logged of its training, up to warnings.

        FedML's trainers log every batch's loss, and mpiexec carries that to the server's host. Of a
        model that the server knows, it tells the label, and which of some images it was.
        """
        assert self.defense is not None
        if self.defense.log_training or self.is_server:
            yield
            return
        level = logging.root.manager.disable
        logging.disable(max(level, logging.INFO))
        try:
            yield
        finally:
            logging.disable(level)

    def assign(self, rank: int, silo: int) -> None:
        """On the server: FedML is about to tell a rank which silo it is to work for."""
        self._silo_of[rank] = silo

    def outgoing(
        self, entries: dict[str, Any], state_key: str, receiver: int | None = None
    ) -> None:
        """The egress gate: in a silo, check a message and make it ready, or raise.

        Args:
            entries: the message's entries; changed in place.
            state_key: name of the entry that holds a model's state.
            receiver: the rank that it goes to; None when the same goes to all.

        Raises:
            UpdateRefused: the message holds anything but agreed public state.

        """
        state = entries.get(state_key)
        if state is not None:
            self._note("while sending its model" if self.is_server else "while uploading")
        if self.is_server:
            self.pin(state)
            if self.defense is not None and isinstance(state, Mapping):
                self._replays.sent(receiver, state)
            if state is not None and self.defense is not None:
                entries[NUMBER] = self._number
            if state is not None and state is not self._sent:
                if self._averages is not None:
                    self._averages.check(state, who=f"the server, round {self.round}")
                self._sent = state
                self.observer.sent(state)
            return
        if self.defense is None:
            return
        for key, value in list(entries.items()):
            if key != state_key and not isinstance(value, (str, int, float, type(None))):
                # as a number: a tensor would take with it all the memory that it is a view of
                entries[key] = check_samples(value, who=f"{self.who}: message entry {key}")
        if state is not None:
            checked = check_state(state, self._agreed(), who=self.who, partial=True)
            entries[state_key] = public_copy(self._released(checked, entries.get("num_samples", 1)))
            self._show("before_upload", entries[state_key], entries, self.silo)
        entries[MARK] = self._agreed().mark

    def sent(self) -> None:
        """What was outgoing has been sent."""
        self._note("while waiting for " + ("the silos" if self.is_server else "the server"))

    def incoming(self, entries: dict[str, Any], state_key: str, sender: int) -> None:
        """The ingress gate: check a message from another rank, or raise.

        Raises:
            UpdateRefused: naming the rank and what is wrong with its message.

        """
        state = entries.get(state_key)
        silo = self._silo_of.get(sender, None if self.in_turn else sender - 1)
        name = f"rank {sender}" if silo is None else f"rank {sender} (silo {silo})"
        who = f"{name}, round {self.round}"
        if self.defense is not None and self.is_server:
            check_mark(entries.get(MARK), self._agreed(), who=who)
            if state is not None:
                check_state(state, self._agreed(), who=who, partial=True)
                self._check_round(state, who, name)
                samples = check_samples(entries.get("num_samples"), who=f"{who}: num_samples")
                self._replays.check(sender, silo, state, round_index=self.round, who=who)
                if self._averages is not None:
                    self._averages.came(state, samples)
        elif self.defense is not None and state is not None:
            mine = f"{self.who}: the server's model"
            state = check_state(state, self._agreed(), who=mine, averaged=True, partial=True)
            if isinstance(self.defense, SharesSecret):
                self.defense.call_job(check_number(entries.get(NUMBER), who=mine))
            self.observer.received = state
            self._receive(state)
        if self.is_server and state is not None:
            self._note("while collecting updates", self.round)
            self._next = self.round + 1
            # what a lock on the whole state sends is like nothing that was sent before
            turned = self.defense is not None and self.defense.transforms_updates
            if self.observer.attacker is not None and not turned:
                check_attackable(state, self.observer.received or {}, who=who)
            self._show("after_upload", state, entries, silo)

    def _receive(self, state: Mapping[str, Tensor]) -> None:
        """In a silo: tell the defense which round's average FedML is about to load."""
        assert self.defense is not None
        if self.model is None:
            raise HostError(f"{self.who}: a model came before the job's own was locked")
        if isinstance(self.defense, SharesSecret) and not self._shared:
            raise HostError(
                f"{self.who}: a model came before the silos had agreed on a secret: start the job "
                "by FedML's own FedMLRunner(args, device, dataset, model, ...).run()"
            )
        self.defense.receive(self.model, state, round_index=self.last_round)

    def _released(self, state: Mapping[str, Tensor], samples: Any) -> Mapping[str, Tensor]:
        """In a silo: what the defense lets out in the place of a state."""
        assert self.defense is not None
        assert self.model is not None
        try:
            return self.defense.release(self.model, state, samples=float(samples))
        except UpdateRefused as error:
            raise UpdateRefused(f"{self.who}: {error}") from None

    def pin(self, state: Any) -> None:
        """On the server: give locked layers their constants, before a model is sent.

        A first model has other values there, and noise and attacks change them. They say nothing,
        so that nothing is lost. Silos refuse a model in which they are others.

        Args:
            state: the model that FedML's server is about to send; changed in place.

        """
        if self.agreement is not None and isinstance(state, MutableMapping):
            state.update(pinned(state, self.agreement))

    def finish(self) -> None:
        """The job is over on this rank: on the server, attack what was captured."""
        if self.is_server:
            self.observer.finish()

    def _agreed(self) -> Agreement:
        if self.agreement is None:
            raise HostError(f"{self.who}: a message was sent before the job's model was locked")
        return self.agreement

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

    def _check_round(self, state: Mapping[str, Tensor], who: str, name: str) -> None:
        """On the server: refuse an update with other names than the first of this round."""
        if self._first is None or self._first[0] != self.round:
            self._first = (self.round, name, frozenset(state))
        check_names(state, self._first[2], who=who, whose=self._first[1])

    def _note(self, doing: str, round_index: int | None = None) -> None:
        """Note what this rank is doing, for the line that is said if it is killed."""
        if self.is_server:
            # FedML counts its server's round only when all silos have got the model for it
            last = int(self.args.comm_round) - 1
            current = min(self._next, last) if round_index is None else round_index
            note(f"rank 0: the server, round {current}: {doing}")
        else:
            note(f"rank {self.args.rank}: {self.who}: {doing}")

    def _finished(self) -> bool:
        return self._trained >= int(self.args.comm_round)

    def _show(
        self, hook: str, state: Mapping[str, Tensor], entries: Mapping[str, Any], silo: int | None
    ) -> None:
        samples = float(entries.get("num_samples", 1))
        self.observer.show(hook, state, samples=samples, silo=silo, round_index=self.round)
