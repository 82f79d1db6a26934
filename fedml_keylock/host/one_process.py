"""FedML's simulation in one process: the server and every silo in turn, on one model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ..errors import HostError
from ..types import SharesSecret
from .flags import Arguments
from .gate import check_state, public_copy
from .session import Session

__all__ = ["Simulation", "session_of"]


def session_of(args: Arguments) -> Session | None:
    """The session of a job with these arguments, as their kind needs it; None without our flags.

    Raises:
        ConfigError: a field is wrong.
        HostError: the job is of a kind that the defense has not been shown to work in.

    """
    alone = (getattr(args, "training_type", None), getattr(args, "backend", None))
    return (Simulation if alone == ("simulation", "sp") else Session).begin(args)


@dataclass
class Simulation(Session):
    """A job of one process, which is the server and each silo in its turn.

    Nothing is sent; the gates stand where something would be.
    """

    ends_with_runner: ClassVar[bool] = False
    _plain: nn.Module | None = None

    @property
    def is_server(self) -> bool:
        """It is."""
        return True

    @property
    def is_silo(self) -> bool:
        """It is that too."""
        return True

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

    def adopt(self, model: nn.Module) -> None:
        """Take the job's model; what the server tests is a copy without a lock."""
        if self._plain is None and isinstance(model, nn.Module):
            self._plain = deepcopy(model)
        super().adopt(model)

    def agree(self, dataset: Sequence[Any]) -> None:
        """All silos are here."""
        if isinstance(self.defense, SharesSecret):
            self.defense.share(os.urandom(32))
        self._shared = True

    def take_in(self, received: Mapping[str, Tensor], trainer: Any) -> None:
        """Give the silo whose turn it is the server's model, through its gate.

        Raises:
            UpdateRefused: it is anything but agreed public state.

        """
        if self.agreement is not None:
            check_state(received, self.agreement, who="the server's model", averaged=True)
            self._receive(received)
        self.observer.received = received
        trainer.set_model_params(received)

    def exchange(self, trainer: Any, data: Any, run: Callable[[], Any], *, samples: int) -> Any:
        """Train one silo for one round, up to its gate; give what would have been sent.

        Raises:
            LockError: the model that trains is not the protected one, or the lock did not train.
            UpdateRefused: the update is anything but agreed public state.

        """
        self.args.round_idx = round_index = self.round
        agreed = None if self.agreement is None else self._agreed()
        who = self.who
        state = self.train(trainer, data, run)
        if agreed is not None:
            checked = check_state(state, agreed, who=who)
            state = public_copy(self._released(checked, samples))
        for hook in ("before_upload", "after_upload"):
            self.observer.show(
                hook, state, samples=samples, silo=self.silo, round_index=round_index
            )
        return state

    @contextmanager
    def as_server(self, trainer: Any) -> Iterator[None]:
        """What is tested in here is the shared model without a lock, as a server would have it."""
        if self.defense is None:
            yield
            return
        if self._plain is None or self.model is None or trainer.model is not self.model:
            raise HostError("the simulation's trainer holds another model than the job's")
        locked = self.model
        self._plain.load_state_dict(locked.state_dict())
        trainer.model = self._plain
        try:
            yield
        finally:
            trainer.model = locked

    def _finished(self) -> bool:
        return False
