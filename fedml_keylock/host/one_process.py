"""FedML's simulation in one process: the server and every silo in turn, on one model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..errors import HostError
from ..tensors import copy_of
from ..types import JobSecrets
from .compatibility import check_sealing
from .progress import note, tell
from .public_state import check_state, public_copy
from .silo_round import SiloRound
from .silo_session import SiloSession

__all__ = ["OneProcess"]


@dataclass
class OneProcess(SiloSession):
    """A job of one process: each silo in its turn, and what the server sees.

    Nothing is sent; the checks of the gates stand where something would be.
    """

    _plain: nn.Module | None = None
    _silos: list[int] = field(default_factory=list)

    @property
    def in_turn(self) -> bool:
        """One model serves all silos, however many there are."""
        return True

    @property
    def who(self) -> str:
        """How messages name the silo whose turn it is."""
        return "the simulation" if self.silo is None else f"silo {self.silo}, round {self.round}"

    @property
    def round(self) -> int:
        """Index of the round: FedML keeps it to itself here."""
        return self._trained // int(self.args.client_num_per_round)

    @property
    def last_round(self) -> int:
        """Index of the round whose aggregate the server has sent last."""
        return self.round - 1

    def see_data(self, dataset: Sequence[Any]) -> None:
        """Show FedML's dataset tuple to the server's attacks, and to silos' on themselves."""
        self.observer.see_data(dataset)

    def agree(self, dataset: Sequence[Any]) -> None:
        """Draw the silos' secret: all of them are here."""
        if self.seals:
            check_sealing(self.args)
        if self.defense is not None:
            others = range(1, int(self.args.client_num_per_round))
            pairs = {other: os.urandom(32) for other in others}  # as silo 0 of them would have them
            known = (dataset[4] or {}).items()
            samples = {silo: float(n) for silo, n in known if isinstance(n, (int, float))}
            self.defense.share(JobSecrets(os.urandom(32), 0, pairs, samples))
        self._shared = True

    def add_up(
        self, updates: Sequence[tuple[float, Mapping[str, Tensor]]]
    ) -> Mapping[str, Tensor] | None:
        """What silos and server make of a round's payloads under a defense that seals.

        Args:
            updates: of the round, each with the silo's samples.

        Returns:
            The average, as silos open it; None for FedML's own.

        """
        if not self.seals or self.observer.received is None:
            return None
        assert self.defense is not None
        weighed = [(self.defense.weigh(float(samples)), update) for samples, update in updates]
        messages, average = self.defense.rehearse(self.observer.received, weighed)
        for silo, message in zip(self._silos, messages, strict=True):
            self._show(message, samples=1.0, silo=silo, round_index=self.last_round)
            self._report_privacy(SiloRound(silo, self.last_round, f"silo {silo}", self.tell))
        self._silos.clear()
        return average

    def load_aggregate(self, state: Mapping[str, Tensor], trainer: Any) -> None:
        """Load the server's model for the silo whose turn it is.

        Raises:
            UpdateRefused: it is anything but agreed public state.

        """
        if self.defense is not None:
            check_state(state, self._agreed(), who="the server's model", averaged=True)
            if not self.seals:  # payloads are sealed and opened where they are averaged
                state = self._open(state)
            elif self.defense.adds_noise:
                state = self._of_round(state)
        self.observer.received = state
        trainer.set_model_params(state)

    def _of_round(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What the round's first silo was given, from which each one's difference is clipped.

        FedML gives the first round's others what the silo before them has trained.
        """
        first = self._trained % int(self.args.client_num_per_round) == 0
        before = self.observer.received
        return state if first or before is None else before

    def exchange(self, trainer: Any, data: Any, run: Callable[[Any], Any], *, samples: int) -> Any:
        """Train one silo for one round; give what it would send.

        Raises:
            LockError: the model that trains is not the protected one, or the lock did not train.
            UpdateRefused: the update is anything but agreed public state.

        """
        self.args.round_idx = round_index = self.round
        self.check_samples(samples)
        agreement = None if self.defense is None else self._agreed()
        who = self.who
        state = self.train(trainer, data, run)
        if agreement is None:
            self._show(state, samples=samples, silo=self.silo, round_index=round_index)
            return state
        checked = check_state(state, agreement, who=who)
        if self.seals:
            self._silos.append(self.silo or 0)
            return public_copy(checked)
        state = public_copy(self._seal(checked, float(samples)))
        self._show(state, samples=samples, silo=self.silo, round_index=round_index)
        return state

    def _show(
        self, state: Mapping[str, Tensor], *, samples: float, silo: int | None, round_index: int
    ) -> None:
        for hook in ("before_upload", "after_upload"):
            self.observer.show(hook, state, samples, silo, round_index)

    @contextmanager
    def as_server(self, trainer: Any) -> Iterator[None]:
        """Have the trainer test the shared model without a lock, as a server would have it."""
        if self.defense is None:
            yield
            return
        if trainer.model is not self.model:
            raise HostError("the simulation's trainer holds another model than the job's")
        locked = self.model
        assert self._plain is not None
        assert locked is not None
        self._plain.load_state_dict(locked.state_dict())
        trainer.model = self._plain
        try:
            yield
        finally:
            trainer.model = locked

    def end(self, state: Mapping[str, Tensor]) -> None:
        """Called when the job is over, with the final model: attack what was captured."""
        self.observer.received = state
        self._report_canaries(0)
        self.observer.finish()

    @property
    def _logs_training(self) -> bool:
        return True  # no other host reads this process's log

    @property
    def _tells_accuracy(self) -> bool:
        return True

    def _prepare(self, model: nn.Module) -> None:
        self._plain = copy_of(model)
        self.observer.begin_capture(model, self.agreement, self.defense, name=self.name)
        super()._prepare(model)

    def _note(self, doing: str) -> None:
        note(f"rank 0: {self.who}: {doing}")
        tell(round=self.round, rounds=int(self.args.comm_round))

    def _chosen(self) -> None:
        """Any: FedML's server is in this process."""

    def _is_over(self) -> bool:
        return False
