"""What a job's updates are shown to: the server's capture and attacks, and plugins that watch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..evaluation.capture import Capture
from ..evaluation.settings import InversionSettings
from ..plugins import manager
from ..types import Agreement, ClientUpdate, Defense
from .flags import INVERSION, Arguments, our_attack

if TYPE_CHECKING:
    from .attack import Attacker
    from .self_audit import SelfAudit, Twin

__all__ = ["Observer", "Tell", "Turn"]

Tell = Callable[[dict[str, Any]], Any]
"""Takes metrics: FedML's own channels."""


@dataclass(frozen=True)
class Turn:
    """A silo's round.

    Attributes:
        silo: its index.
        round: its index.
        who: how messages name the silo.
        tell: takes the silo's scores.

    """

    silo: int
    round: int
    who: str
    tell: Tell


@dataclass
class Observer:
    """One rank's eyes: without the attack flag and without a plugin's hook it sees nothing.

    Attributes:
        args: FedML's arguments.
        received: the public state that the silos were sent last.

    """

    args: Arguments
    settings: InversionSettings | None = None
    received: Mapping[str, Tensor] | None = None
    _attacker: Attacker | None = None
    _capture: Capture | None = None
    _model: nn.Module | None = field(default=None, repr=False)
    _defense: Defense | None = None
    _came: int = 0
    _own: SelfAudit | None = None
    _twin: Twin | None = field(default=None, repr=False)

    @classmethod
    def begin(cls, args: Arguments, *, defended: bool) -> Observer:
        """What the job's flags ask for.

        Raises:
            ConfigError: a field is wrong.
            AttackError: an attack can run at none of the levels.

        """
        if not our_attack(args):
            return cls(args)
        # an attack's parts are many modules: they are loaded where one is asked for
        from .attack import Attacker

        settings = InversionSettings.from_mapping(getattr(args, INVERSION, None))
        # what cannot be run is refused now, and not after the training
        return cls(args, settings, _attacker=Attacker.begin(settings, defended=defended))

    @property
    def attacks_itself(self) -> bool:
        """Whether each silo is to attack its own updates."""
        return self.settings is not None and self.settings.side == "silo"

    @property
    def audits_updates(self) -> bool:
        """Whether each silo attacks the very updates that it is about to send."""
        if self._twin is None or self._own is None:
            return False
        return self._own.settings.probe == "as_sent"

    def see_data(self, dataset: Sequence[Any]) -> None:
        """Keep some of FedML's test data, which silos' data are like."""
        if self._attacker is not None:
            self._attacker.see_data(dataset[3] or (), classes=int(dataset[7]))

    def see_model(
        self,
        model: nn.Module,
        agreement: Agreement | None,
        defense: Defense | None,
        *,
        name: str | None,
        server: bool,
    ) -> None:
        """Take the job's model before it is protected: on a server that attacks, begin the capture.

        Args:
            model: as yet unprotected.
            agreement: what the defense said of it; None without one.
            defense: the job's, or None.
            name: of the defense.
            server: whether this rank is the server's.

        """
        if self.settings is None or (self.attacks_itself and self.settings.when == "never"):
            return
        self._model, self._defense = deepcopy(model), defense
        if server and not self.attacks_itself:
            meta = {
                "learning_rate": float(self.args.learning_rate),
                "client_optimizer": str(getattr(self.args, "client_optimizer", "")),
                "batch_size": int(getattr(self.args, "batch_size", 0)),
                "rounds": int(self.args.comm_round),
                "bounds": list(self._attacker.bounds) if self._attacker else None,
                "defense": name,
                "settings": dict(agreement.settings) if agreement else {},
                "layers": list(agreement.layers) if agreement else [],
            }
            self._capture = Capture.create(self.settings.output / "capture", meta)
        elif self.attacks_itself and self._attacker is not None:
            from .self_audit import SelfAudit

            self._own = SelfAudit(self._attacker, getattr(defense, "title", name) or "none")

    def round_begins(self, turn: Turn, protected: nn.Module | None, data: Any) -> None:
        """In a silo that attacks itself, before it trains.

        Args:
            turn: whose round it is.
            protected: the silo's model, with the server's weights.
            data: that it trains on.

        Raises:
            UpdateRefused: one step would give away more than the YAML allows.

        """
        self._twin = None
        if self._own is None or self._model is None or protected is None:
            return
        if not self._captured(turn.round):
            return
        from .self_audit import Twin

        self._twin = Twin.of(self._model, protected, self._defense)
        if self._own.settings.probe == "single_step":
            rate = float(self.args.learning_rate)
            self._own.single_step(turn, self._twin, data, rate=rate)

    def round_ends(self, turn: Turn, state: Any, data: Any) -> None:
        """In a silo that attacks itself, when it has trained and has not sent anything.

        Raises:
            UpdateRefused: what it would send gives away more than the YAML allows.

        """
        if not self.audits_updates:
            return
        assert self._twin is not None
        assert self._own is not None
        from ..inversion import LocalTraining

        args, before = self.args, self.received
        if before is None:  # nothing came from a server: as it was
            before = self._twin.plain.state_dict()
        update = ClientUpdate(
            before=_copy(before),
            after={name: state[name].detach().clone() for name in before},
            learning_rate=float(args.learning_rate),
            silo=turn.silo,
            round=turn.round,
        )
        how = LocalTraining(epochs=int(args.epochs), batch_size=int(args.batch_size))
        self._own.as_sent(turn, self._twin, data, update, training=how)

    def watches(self, hook: str) -> bool:
        """Whether anything would look at an update."""
        return self._capture is not None or bool(getattr(manager().hook, hook).get_hookimpls())

    def sent(self, state: Mapping[str, Tensor]) -> None:
        """The server sends this state to silos."""
        # the same state goes to every silo: one copy, for the capture and the plugins
        if self.watches("after_upload"):
            self.received = _copy(state)

    def show(
        self,
        hook: str,
        state: Mapping[str, Tensor],
        *,
        samples: float,
        silo: int | None,
        round_index: int,
    ) -> None:
        """Give the capture and the plugins a copy of an update."""
        if self.received is None or silo is None or not self.watches(hook):
            return
        update = ClientUpdate(
            before=_copy(self.received),
            after=_copy(state),
            learning_rate=float(self.args.learning_rate),
            samples=int(samples),
            silo=silo,
            round=round_index,
        )
        if self._capture is not None and hook == "after_upload" and self._captured(round_index):
            self._capture.add(update)
            self._came += 1
            if self._inline() and self._came % int(self.args.client_num_per_round) == 0:
                self._attack(round_index)  # while FedML waits to aggregate
        getattr(manager().hook, hook)(update=update)

    def finish(self) -> None:
        """The job is over on this rank: on the server, attack what was captured."""
        if self._capture is None or self._attacker is None:
            return
        if self.received is not None:  # after the last round the server still sends the model
            self._capture.finish(self.received)
        if self._attacker.settings.when == "after":
            self._attack()

    def _attack(self, round_index: int | None = None) -> None:
        assert self._attacker is not None
        assert self._capture is not None
        assert self._model is not None
        seed = int(getattr(self.args, "random_seed", 0))
        self._attacker.run(
            self._capture, self._model, self._defense, seed=seed, round_index=round_index
        )

    def _inline(self) -> bool:
        return self.settings is not None and self.settings.when == "inline"

    def _captured(self, round_index: int) -> bool:
        assert self.settings is not None
        total = int(self.args.comm_round)
        return round_index in {r % total if r < 0 else r for r in self.settings.rounds}


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
