"""Passes a job's updates to those who watch: a server's capture, a silo's audit, plugins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click
from torch import Tensor, nn

from ..defense import Defense
from ..errors import AttackError, ConfigError, reason_of
from ..evaluation.section import InversionSettings
from ..plugins import manager
from ..tensors import copied, copy_of
from ..types import Agreement, ClientUpdate
from .job_configuration import INVERSION, Arguments, our_attack
from .silo_round import SiloRound

if TYPE_CHECKING:
    from .active_server import ActiveServer
    from .self_audit import SelfAudit
    from .server_attacker import Attacker, ServerCapture

__all__ = ["Observer"]


@dataclass
class Observer:
    """A rank's observer; without the attack flag and plugins' hooks it does nothing.

    Attributes:
        args: FedML's arguments.
        attacker: the attacks that the job's YAML sets; None without the attack flag.
        capture: the capture of a server that attacks.
        audit: the audit of a silo that attacks itself.
        active: the active attack of a server that sends manipulated models.
        received: the public state that silos were sent last.

    """

    args: Arguments
    attacker: Attacker | None = None
    capture: ServerCapture | None = None
    audit: SelfAudit | None = None
    active: ActiveServer | None = None
    received: Mapping[str, Tensor] | None = None

    @classmethod
    def begin(cls, args: Arguments, defense: Defense | None) -> Observer:
        """Make a rank's observer from the job's flags.

        Raises:
            ConfigError: a field is wrong, or would reveal by the job's end what noise hides.
            AttackError: an attack can run at none of the levels.

        """
        if not our_attack(args):
            return cls(args)
        # attacks need many modules: import them only if the job attacks
        from .server_attacker import Attacker

        settings = InversionSettings.from_mapping(getattr(args, INVERSION, None))
        if settings.abort_above and defense is not None and defense.adds_noise:
            raise ConfigError(
                f"{settings.section}.abort_above: beside noise it would tell by the end of the job "
                "what noise hides; leave it out: scores are in the silo's own log"
            )
        rounds, defended = int(args.comm_round), defense is not None
        attacker = Attacker.begin(settings, rounds=rounds, defended=defended)
        if settings.active is None:
            return cls(args, attacker)
        from .active_server import ActiveServer

        return cls(args, attacker, active=ActiveServer.begin(attacker, args, defense))

    @property
    def attacks_itself(self) -> bool:
        """Whether each silo attacks its own updates."""
        return self.attacker is not None and self.attacker.settings.side == "silo"

    @property
    def audits_update(self) -> bool:
        """Whether the silo attacks the update that it is about to send."""
        return self.audit is not None and self.audit.waits

    def see_data(self, dataset: Sequence[Any]) -> None:
        """Keep some of FedML's test data, which resemble silos' data."""
        if self.attacker is not None:
            # a loader may have no length
            self.attacker.see_data(() if dataset[3] is None else dataset[3])

    def see_trainer(self, trainer: Any) -> None:
        """Find the loss of a job's own trainer, or with None of FedML's."""
        if self.attacker is not None:
            self.attacker.see_trainer(self.args, trainer)

    def begin_audit(self, model: nn.Module, defense: Defense | None) -> None:
        """In a silo: prepare its self-audit, on the unprotected model."""
        if self.attacker is None or self.attacker.settings.when == "never":
            return
        if self.attacks_itself:
            from .self_audit import SelfAudit

            self.audit = SelfAudit(self.attacker, self.args, _copy(model), defense)

    def begin_capture(
        self,
        model: nn.Module,
        agreement: Agreement | None,
        defense: Defense | None,
        *,
        name: str | None,
    ) -> None:
        """On a server that attacks: begin its capture, with the unprotected model."""
        if self.attacker is not None and not self.attacks_itself:
            from .server_attacker import ServerCapture

            self.capture = ServerCapture.begin(
                self.attacker, self.args, _copy(model), defense, name=name, agreement=agreement
            )
        if self.active is not None:
            self.active.model = _copy(model)

    def round_begins(self, turn: SiloRound, protected: nn.Module | None, data: Any) -> None:
        """In a silo, before it trains; see `SelfAudit.round_begins`."""
        if self.audit is not None and protected is not None:
            self.audit.round_begins(turn, protected, data)

    def round_ends(self, turn: SiloRound, state: Mapping[str, Tensor], data: Any) -> None:
        """In a silo, after it trained and before it sends; see `SelfAudit.round_ends`."""
        if self.audit is not None:
            self.audit.round_ends(turn, state, data, received=self.received)

    def sending(
        self, state: Mapping[str, Tensor], silo: int, round_index: int
    ) -> Mapping[str, Tensor]:
        """The state that a silo is sent in a round: an active attack's, or else the server's."""
        if self.active is None:
            return state
        return self.active.outgoing(state, silo, round_index)

    def before(self, silo: int | None) -> Mapping[str, Tensor] | None:
        """A copy of the public state that a silo was sent last; None if nobody watches."""
        if self.active is not None and silo in self.active.own:
            return self.active.own[silo]
        return self.received

    def sent(self, state: Mapping[str, Tensor], silo: int | None) -> None:
        """Called when the server sends this state to all silos, or its own state to one silo."""
        if self.active is not None and silo in self.active.own:
            return
        # every silo gets the same state: one copy, for the capture and the plugins
        if self.capture is not None or _watched("after_upload"):
            self.received = copied(state)

    def show(
        self,
        hook: str,
        state: Mapping[str, Tensor],
        samples: float,
        silo: int | None,
        round_index: int,
    ) -> None:
        """Pass an update to the capture, and a copy of it to plugins."""
        before = self.before(silo)
        if before is None or silo is None:
            return
        rate = float(self.args.learning_rate)
        update = ClientUpdate(before, state, rate, float(samples), silo, round_index)
        capture = self.capture if hook == "after_upload" else None
        if capture is not None and round_index in capture.attacker.rounds:
            with _spared(f"round {round_index}"):
                capture.add(update, own=before is not self.received)
        if _watched(hook):
            copy = replace(update, before=copied(update.before), after=copied(update.after))
            getattr(manager().hook, hook)(update=copy)

    def finish(self) -> None:
        """Called at the job's end on this rank: a server attacks its captured updates."""
        if self.capture is not None:
            with _spared("the captured rounds"):
                self.capture.finish(self.received)


@contextmanager
def _spared(what: str) -> Iterator[None]:
    """Report in one line why a server's attack failed, and let the job go on."""
    try:
        yield
    except Exception as error:
        click.echo(f"fedml-keylock: attack on {what} not run: {reason_of(error)}", err=True)


def _copy(model: nn.Module) -> nn.Module:
    """A copy of the job's model for attacks; AttackError before training if it cannot be copied.

    A model that holds a `threading.Lock` is an example.
    """
    try:
        return copy_of(model)
    except Exception as error:  # parts of a model may raise anything
        raise AttackError(f"the model cannot be copied for attacks: {reason_of(error)}") from None


def _watched(hook: str) -> bool:
    """Whether a plugin watches updates."""
    return bool(getattr(manager().hook, hook).get_hookimpls())
