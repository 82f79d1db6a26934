"""One rank's part in one job: its flags, its protected model, and what its gates hold to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import HostError, LockError
from ..evaluation.capture import Capture
from ..evaluation.run import trials
from ..evaluation.settings import InversionSettings
from ..inversion import PublicData
from ..plugins import defenses, manager, one_of
from ..types import Agreement, ClientUpdate, Defense
from .attack import attack_capture
from .flags import (
    INVERSION,
    Arguments,
    check_noise,
    check_supported,
    check_then,
    our_attack,
    our_defense,
)
from .gate import MARK, check_mark, check_samples, check_state, public_copy

__all__ = ["Session"]

log = logging.getLogger(__name__)
_PUBLIC = 1000


@dataclass
class Session:
    """One rank of one job.

    Attributes:
        args: FedML's arguments.
        name: the defense's name, or None when only attacks are asked for.
        defense: the defense, or None.
        inversion: the attack section, or None.
        silo: index of the silo that this rank works for, from 0; None on the server, and in a rank
            that serves many in turn until FedML says which one.

    """

    args: Arguments
    name: str | None
    defense: Defense | None
    inversion: InversionSettings | None
    model: nn.Module | None = None
    agreement: Agreement | None = None
    capture: Capture | None = None
    received: Mapping[str, Tensor] | None = None
    public: PublicData | None = None
    classes: int = 0
    silo: int | None = None
    _sent: Any = None
    _silo_of: dict[int, int] = field(default_factory=dict)
    _trained: int = 0

    def __post_init__(self) -> None:
        if not self.is_server and not self.in_turn:
            self.silo = int(self.args.rank) - 1

    @classmethod
    def begin(cls, args: Arguments) -> Session | None:
        """The session that this job's flags ask for, or None when they ask for nothing.

        Raises:
            ConfigError: a field is wrong.
            HostError: the job is of a kind that the defense has not been shown to work in.

        """
        name, attack = our_defense(args), our_attack(args)
        if name is None and not attack:
            return None
        check_supported(args)
        defense = defenses()[name](getattr(args, name, None) or {}) if name else None
        inversion = (
            InversionSettings.from_mapping(getattr(args, INVERSION, None)) if attack else None
        )
        if inversion is not None:  # what cannot be run is refused now, and not after the training
            chosen = {n: one_of("attacks", n)(**fields) for n, fields in inversion.attacks.items()}
            trials(chosen, inversion.knowledge, defended=name is not None)
        session = cls(args, name, defense, inversion)
        check_then(name, session.then)
        return session

    @property
    def then(self) -> str | None:
        """FedML's own defense that its server is to run on what silos send, if any."""
        return getattr(self.defense, "then", None)

    @property
    def is_server(self) -> bool:
        """Whether this rank is the server's."""
        return bool(self.args.role == "server")

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
        return f"{name}, round {self._round()}"

    def see_data(self, dataset: Sequence[Any]) -> None:
        """On a server that attacks: keep some of its test data, which silos' data are like."""
        if self.inversion is None or not self.is_server:
            return
        self.public = _public(dataset[3] or ())
        self.classes = int(dataset[7])

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
            check_then(self.name, self.then, self.agreement.shapes)
            check_noise(self.args, self.agreement.dtypes)
            if not self.is_server:
                done = self.defense.protect(model, silo=self.silo, agreement=self.agreement)
                log.info("%s: %s", self.who, done)
        self.model = model
        if self.is_server and self.inversion is not None:
            self.capture = Capture.create(self.inversion.output / "capture", self._capture_meta())

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
        if self.defense is None or not self.in_turn or self._trained >= int(self.args.comm_round):
            return
        if self.model is None:
            raise HostError(f"{self.who}: FedML gave it data before the job's model was locked")
        log.info("%s: %s", self.who, self.defense.enter_silo(self.model, silo=silo))

    def train(self, trainer: Any, run: Callable[[], Any]) -> Any:
        """Run a silo's local training under the defense's eyes.

        Raises:
            LockError: the model that trains is not the protected one, or the lock did not train.

        """
        if self.defense is None or self.is_server:
            return run()
        if getattr(trainer, "model", self.model) is not self.model:
            raise LockError(f"{self.who}: the trainer's model is not the one that was locked")
        assert self.model is not None
        self.defense.begin_round(self.model, round_index=self._round())
        result = run()
        self.defense.end_round(self.model, round_index=self._round())
        self._trained += 1
        return result

    def assign(self, rank: int, silo: int) -> None:
        """On the server: FedML is about to tell a rank which silo it is to work for."""
        self._silo_of[rank] = silo

    def outgoing(self, entries: dict[str, Any], state_key: str) -> None:
        """The egress gate: in a silo, check a message and make it ready, or raise.

        Args:
            entries: the message's entries; changed in place.
            state_key: name of the entry that holds a model's state.

        Raises:
            UpdateRefused: the message holds anything but agreed public state.

        """
        state = entries.get(state_key)
        if self.is_server:
            # the same state goes to every silo: keep one copy, for the capture and the observers
            if state is not None and state is not self._sent and self._watched("after_upload"):
                self._sent, self.received = state, _copy(state)
            return
        if self.defense is None:
            return
        for key, value in list(entries.items()):
            if key != state_key and not isinstance(value, (str, int, float, type(None))):
                # as a number: a tensor would take with it all the memory that it is a view of
                entries[key] = check_samples(value, who=f"{self.who}: message entry {key}")
        if state is not None:
            entries[state_key] = public_copy(check_state(state, self._agreed(), who=self.who))
            self._show("before_upload", entries[state_key], entries, self.silo)
        entries[MARK] = self._agreed().mark

    def incoming(self, entries: dict[str, Any], state_key: str, sender: int) -> None:
        """The ingress gate: check a message from another rank, or raise.

        Raises:
            UpdateRefused: naming the rank and what is wrong with its message.

        """
        state = entries.get(state_key)
        silo = self._silo_of.get(sender, None if self.in_turn else sender - 1)
        if self.defense is not None:
            if self.is_server:
                name = f"rank {sender}" if silo is None else f"rank {sender} (silo {silo})"
                who = f"{name}, round {self._round()}"
                check_mark(entries.get(MARK), self._agreed(), who=who)
                if state is not None:
                    check_state(state, self._agreed(), who=who)
                    check_samples(entries.get("num_samples"), who=f"{who}: num_samples")
            elif state is not None:
                who = f"{self.who}: the server's model"
                self.received = check_state(state, self._agreed(), who=who, averaged=True)
        if self.is_server and state is not None:
            self._show("after_upload", state, entries, silo)

    def pin(self, state: Any) -> None:
        """On the server: give locked layers' constants back what noise and attacks made of them.

        They say nothing, so that nothing is lost. Silos refuse a model in which they are others.

        Args:
            state: the model that FedML's server made; changed in place.

        """
        if self.agreement is None or not isinstance(state, MutableMapping):
            return
        for name, constant in self.agreement.constants.items():
            if isinstance(state.get(name), Tensor):
                state[name] = torch.full_like(state[name], constant)

    def finish(self) -> None:
        """The job is over on this rank: on the server, attack what was captured."""
        if self.capture is None or self.model is None or self.inversion is None:
            return
        if self.received is not None:  # after the last round the server still sends the model
            self.capture.finish(self.received)
        if self.inversion.when == "after":
            attack_capture(
                self.capture,
                self.inversion,
                self.model,
                self.defense,
                public=self.public,
                classes=self.classes,
                seed=int(getattr(self.args, "random_seed", 0)),
            )

    def _agreed(self) -> Agreement:
        if self.agreement is None:
            raise HostError(f"{self.who}: a message was sent before the job's model was locked")
        return self.agreement

    def _round(self) -> int:
        return int(getattr(self.args, "round_idx", None) or 0)

    def _watched(self, hook: str) -> bool:
        return self.capture is not None or bool(getattr(manager().hook, hook).get_hookimpls())

    def _show(
        self, hook: str, state: Mapping[str, Tensor], entries: Mapping[str, Any], silo: int | None
    ) -> None:
        """Give the capture and the observers a copy of an update."""
        if self.received is None or silo is None or not self._watched(hook):
            return
        update = ClientUpdate(
            before=_copy(self.received),
            after=_copy(state),
            learning_rate=float(self.args.learning_rate),
            samples=int(entries.get("num_samples", 1)),
            silo=silo,
            round=self._round(),
        )
        if self.capture is not None and update.round in self._captured_rounds():
            self.capture.add(update)
        getattr(manager().hook, hook)(update=update)

    def _captured_rounds(self) -> set[int]:
        assert self.inversion is not None
        total = int(self.args.comm_round)
        return {r % total if r < 0 else r for r in self.inversion.rounds}

    def _capture_meta(self) -> dict[str, Any]:
        agreed = self.agreement
        return {
            "learning_rate": float(self.args.learning_rate),
            "client_optimizer": str(getattr(self.args, "client_optimizer", "")),
            "batch_size": int(getattr(self.args, "batch_size", 0)),
            "rounds": int(self.args.comm_round),
            "defense": self.name,
            "settings": dict(agreed.settings) if agreed else {},
            "layers": list(agreed.layers) if agreed else [],
        }


def _public(loader: Iterable[Any]) -> PublicData | None:
    """The first thousand images of FedML's test data, or None if they are not images."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in loader:
        some, which = batch[0], batch[1]
        if not (isinstance(some, Tensor) and some.dim() == 4 and some.is_floating_point()):
            return None
        images.append(some)
        labels.append(which)
        if sum(map(len, images)) >= _PUBLIC:
            break
    if not images:
        return None
    return PublicData(torch.cat(images)[:_PUBLIC], torch.cat(labels)[:_PUBLIC].long())


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
