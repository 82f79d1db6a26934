"""The server's session: checks and processes all that a job's server sends and receives."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..errors import HostError, KeyLockError, UpdateRefused, reason_of
from .gate import HELLO, HELLOS, EntryNames, ServerGate
from .progress import note, tell
from .session import Session
from .update_history import Sender

__all__ = ["ServerSession"]


class _Samples(float):
    """A silo's number of samples, unchanged: sums of sealed updates have no other weights."""


@dataclass
class ServerSession(Session):
    """The session of the server's rank.

    Attributes:
        gate: checks its messages.

    """

    gate: ServerGate = field(default_factory=ServerGate)
    _hellos: dict[int, str] = field(default_factory=dict)
    _total: Mapping[str, Tensor] | None = field(default=None, repr=False)
    _silo_of: dict[int, int] = field(default_factory=dict)
    _sent: Any = None
    _next_round: int = 0
    _told: bool = False
    _told_round: int | None = None

    def __post_init__(self) -> None:
        transforms = self.defense is not None and self.defense.transforms_updates
        self.gate.reads_states = self.observer.attacker is not None and not transforms

    @property
    def who(self) -> str:
        """The rank's name in messages."""
        return "the server"

    @property
    def is_sealed(self) -> bool:
        """Whether the server holds a sum of sealed words in place of a model."""
        return self._total is not None

    def add_up(self, updates: Sequence[tuple[Any, Mapping[str, Tensor]]]) -> Mapping[str, Tensor]:
        """The sum of sealed updates, in place of FedML's average.

        Args:
            updates: a round's updates, each with its number of samples as FedML has it.

        Raises:
            HostError: there is not exactly one per rank, or the job's aggregator changed them.

        """
        assert self.defense is not None
        each = int(self.args.client_num_per_round)
        if len(updates) != each:
            raise HostError(
                f"{self.who}, round {self.round}: {len(updates)} updates of {each} silos are to be "
                "averaged, and sealed ones open together only: let the aggregator pass all of them "
                "to FedMLAggOperator.agg"
            )
        words = (tensor.dtype for _, state in updates for tensor in state.values())
        if any(dtype != torch.int32 for dtype in words):
            raise HostError(
                f"{self.who}, round {self.round}: the job's aggregator changed sealed updates "
                f"before they were averaged; {_CALL_AGG}"
            )
        if not all(isinstance(number, _Samples) for number, _ in updates):
            raise HostError(
                f"{self.who}, round {self.round}: the job's aggregator weighs the silos by numbers "
                "of its own, and sealed updates are weighed in the silos: let it pass on the "
                "numbers that it is given, and put weights into the dataset's numbers of samples"
            )
        self._total = self.defense.add_up([state for _, state in updates])
        first = updates[0][1]
        if isinstance(first, dict):  # FedML's averaging too keeps all updates in memory
            first.update(self._total)
        self.defense.keep(self._total, round_index=self.round)
        # a copy: the job's aggregator may change the sum in place
        return OrderedDict((name, words.clone()) for name, words in self._total.items())

    def refuse_aggregator(self, error: Exception) -> NoReturn:
        """Report in one line that the job's own aggregator fails on sealed updates.

        Raises:
            HostError: always.

        """
        if isinstance(error, KeyLockError):
            raise error
        raise HostError(
            f"{self.who}, round {self.round}: the job's aggregator failed on sealed updates "
            f"({reason_of(error)}); {_CALL_AGG}"
        ) from error

    def tell_sealed(self) -> None:
        """Log once that the server's own model is not updated: it cannot load sealed words."""
        if not self._told:
            self._told = True
            logging.info(
                "%s: its model is sealed, and is not tested here; silos test it. The job's "
                "aggregator keeps the first model: keylock.save_model has silos write the last one",
                self.who,
            )

    def emit(self, entries: dict[str, Any], names: EntryNames, receiver: int | None = None) -> None:
        """Check and prepare what the server sends; see `Session.emit`."""
        if receiver is not None and entries.get(names.silo) is not None:
            self._silo_of[receiver] = int(entries[names.silo])
        state = entries.get(names.state)
        if state is None:
            return
        if self._hellos and self._total is None:
            entries[HELLOS] = ",".join(f"{rank}:{said}" for rank, said in self._hellos.items())
        averaged = self._total is not None or (self.seals and self._next_round > 0)
        if averaged and not _is_same(state, self._total):
            raise UpdateRefused(
                f"{self.who}, round {self.round}: the job's aggregator changed the sum of sealed "
                f"updates, or computed something else of them; {_CALL_AGG}"
            )
        silo = None if receiver is None else self._silo_at(receiver)
        if silo is not None:
            state = entries[names.state] = self.observer.sending(state, silo, self._next_round)
        self._note("while sending its model")
        agreement = None if self.defense is None else self._agreed()
        self.gate.emit(entries, names, agreement, receiver, is_sum=self.is_sealed)
        if state is not self._sent:  # every silo gets the same
            self._sent = state
            self.observer.sent(state, silo)

    def sent(self) -> None:
        """Called after a message was sent."""
        self._note("while waiting for the silos")

    def admit(self, entries: dict[str, Any], names: EntryNames, sender: int) -> None:
        """Check a silo's message, and pass its update to the observer."""
        silo = self._silo_at(sender)
        if isinstance(entries.get(HELLO), str):
            self._hellos[sender] = entries[HELLO]
        agreement = None if self.defense is None else self._agreed()
        origin, before = Sender(sender, silo, self.round), self.observer.before(silo)
        update = self.gate.admit(entries, names, agreement, origin, before)
        if update is None:
            return
        self._note("while collecting updates", self.round)
        self._next_round = self.round + 1
        state, samples = update
        if self.seals:
            entries[names.samples] = _Samples(samples)
        self.observer.show("after_upload", state, samples, silo, self.round)

    def finish(self) -> None:
        """Attack the captured updates."""
        self.observer.finish()

    def _prepare(self, model: nn.Module) -> None:
        self.observer.begin_capture(model, self.agreement, self.defense, name=self.name)
        if self.defense is not None:
            self.defense.enter_server()
            tell(defense=self.defense.title, server_reads=self.defense.server_reads)

    def _silo_at(self, rank: int) -> int | None:
        """Index of the silo that a rank works for; None until FedML gives it one in turn."""
        return self._silo_of.get(rank, None if self.in_turn else rank - 1)

    def _note(self, doing: str, round_index: int | None = None) -> None:
        """Note what this rank is doing, for the report if it is killed."""
        # FedML's server counts a round only once all silos have its model
        last = int(self.args.comm_round) - 1
        current = min(self._next_round, last) if round_index is None else round_index
        note(f"rank 0: the server, round {current}: {doing}")
        if current != self._told_round:
            self._told_round = current
            tell(round=current, rounds=last + 1)


_CALL_AGG = (
    "under lock: sealed it must return what FedMLAggOperator.agg(args, updates) or "
    "super().aggregate(updates) gives, unchanged; a server rate or momentum belongs into the "
    "silos' trainer"
)


def _is_same(state: Any, total: Mapping[str, Tensor] | None) -> bool:
    """Whether a state equals the sum."""
    if total is None or not isinstance(state, Mapping) or state.keys() != total.keys():
        return False
    return all(
        isinstance(words, Tensor) and words.dtype == torch.int32 and words.equal(total[name])
        for name, words in state.items()
    )
