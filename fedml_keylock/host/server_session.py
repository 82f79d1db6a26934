"""The server's part in a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .compatibility import adds_server_noise
from .gate import EntryNames, ServerGate
from .progress import note
from .session import Session
from .update_history import AverageCheck, Sender

__all__ = ["ServerSession"]


@dataclass
class ServerSession(Session):
    """The server's rank.

    Attributes:
        gate: what its messages pass.

    """

    gate: ServerGate = field(default_factory=ServerGate)
    _silo_of: dict[int, int] = field(default_factory=dict)
    _sent: Any = None
    _next_round: int = 0

    def __post_init__(self) -> None:
        transforms = self.defense is not None and self.defense.transforms_updates
        self.gate.reads_states = self.observer.attacker is not None and not transforms

    @property
    def who(self) -> str:
        """How messages name this rank."""
        return "the server"

    def agree(self, dataset: Sequence[Any]) -> None:
        """Check that silos can agree; from now on send nothing but averages in which masks cancel.

        Raises:
            ConfigError: see `Session.agree`.

        """
        super().agree(dataset)
        if self.is_masked and not adds_server_noise(self.args):
            self.gate.history.average = AverageCheck()

    def emit(self, entries: dict[str, Any], names: EntryNames, receiver: int | None = None) -> None:
        """Check and make ready what the server sends; see `Session.emit`."""
        if receiver is not None and entries.get(names.silo) is not None:
            self._silo_of[receiver] = int(entries[names.silo])
        state = entries.get(names.state)
        if state is None:
            return
        self._note("while sending its model")
        agreement = None if self.defense is None else self._agreed()
        who = f"{self.who}, round {self.round}"
        self.gate.emit(entries, names, agreement, receiver, who=who)
        if state is not self._sent:  # the same goes to every silo
            self._sent = state
            self.observer.sent(state)

    def sent(self) -> None:
        """Called after a message was sent."""
        self._note("while waiting for the silos")

    def admit(self, entries: Mapping[str, Any], names: EntryNames, sender: int) -> None:
        """Check a silo's message, and show its update to the observer."""
        silo = self._silo_of.get(sender, None if self.in_turn else sender - 1)
        agreement = None if self.defense is None else self._agreed()
        origin, before = Sender(sender, silo, self.round), self.observer.received
        update = self.gate.admit(entries, names, agreement, origin, before)
        if update is None:
            return
        self._note("while collecting updates", self.round)
        self._next_round = self.round + 1
        state, samples = update
        self.observer.show("after_upload", state, samples, silo, self.round)

    def finish(self) -> None:
        """Attack what was captured."""
        self.observer.finish()

    def _prepare(self, model: nn.Module) -> None:
        self.observer.begin_capture(model, self.agreement, self.defense, name=self.name)

    def _note(self, doing: str, round_index: int | None = None) -> None:
        """Note what this rank is doing, for the line that reports it if it is killed."""
        # FedML counts its server's round only when all silos have got the model for it
        last = int(self.args.comm_round) - 1
        current = min(self._next_round, last) if round_index is None else round_index
        note(f"rank 0: the server, round {current}: {doing}")
