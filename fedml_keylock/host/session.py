"""One rank's part in one job: what a server's and a silo's have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..defense import Defense
from ..errors import ConfigError, HostError, LockError
from ..tensors import as_integers, with_versions
from ..types import Agreement, Credentials
from .compatibility import NO_GROUP_KEY, check_model, check_sealing
from .gate import EntryNames
from .job_configuration import Arguments
from .link import Link
from .observer import Observer
from .silo_round import Tell

__all__ = ["Session"]


def _nowhere(_metrics: dict[str, Any]) -> None:
    """Where metrics go until FedML's channels are known."""


@dataclass
class Session(ABC):
    """One rank of one job.

    Attributes:
        args: FedML's arguments.
        name: the defense's name, or None when only attacks are asked for.
        defense: the defense, or None.
        observer: sees updates.
        model: the job's, when it is known.
        agreement: what the defense says of the model.
        link: tags messages, if that is configured.
        tell: sends metrics on FedML's own channels.

    """

    args: Arguments
    name: str | None
    defense: Defense | None
    observer: Observer
    model: nn.Module | None = None
    agreement: Agreement | None = None
    link: Link | None = None
    tell: Tell = _nowhere

    @property
    @abstractmethod
    def who(self) -> str:
        """How messages name this rank."""

    @property
    def round(self) -> int:
        """Index of the round, from 0."""
        return int(getattr(self.args, "round_idx", None) or 0)

    @property
    def in_turn(self) -> bool:
        """Whether there are more silos than ranks, so that a rank serves another in each round."""
        total, each = (getattr(self.args, f"client_num_{n}", 0) for n in ("in_total", "per_round"))
        return int(total) > int(each)

    @property
    def robust_aggregation(self) -> str | None:
        """FedML's own defense that its server is to run on what silos send, if any."""
        return self.defense.robust_aggregation if self.defense else None

    @property
    def seals(self) -> bool:
        """Whether silos send words that their server adds up and cannot read."""
        return self.defense is not None and self.defense.seals

    def see_data(self, dataset: Sequence[Any]) -> None:
        """Show FedML's dataset tuple to the rank's attacks."""
        self.observer.see_data(dataset)

    def see_trainer(self, trainer: Any) -> None:
        """Show the job's own trainer to the rank's attacks; None where FedML makes it."""
        self.observer.see_trainer(trainer)

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
            check_model(self.args, self.name, self.robust_aggregation, self.agreement.dtypes)
        self._prepare(model)
        self.model = model

    def agree(self, dataset: Sequence[Any]) -> None:
        """Before FedML's messages begin: check that silos can agree on the secrets they need.

        Raises:
            ConfigError: silos cannot talk to one another; or the server would read or change single
                updates, or the average.

        """
        if self.seals:
            check_sealing(self.args)
        credentials = self._credentials
        if credentials is not None:
            is_server = self.args.role == "server"
            self.link = Link.of(credentials, int(self.args.rank), is_server=is_server)
        if credentials is not None and not credentials.group_key and not self._comm:
            raise ConfigError(NO_GROUP_KEY)
        if self.seals and self._comm is None and self.in_turn:
            raise ConfigError(
                "client_num_in_total: over this backend silos cannot tell one another who takes "
                "part in a round; give every silo a rank of its own, or use backend: MPI"
            )

    @abstractmethod
    def emit(self, entries: dict[str, Any], names: EntryNames, receiver: int | None = None) -> None:
        """Check a message to a rank, or to all (None), and make it ready in place; or raise."""

    @abstractmethod
    def sent(self) -> None:
        """Called after a message was sent."""

    @abstractmethod
    def admit(self, entries: dict[str, Any], names: EntryNames, sender: int) -> None:
        """Check a message from another rank; or raise, naming it."""

    def finish(self) -> None:  # noqa: B027  # a silo has nothing to do
        """Called when the job is over on this rank."""

    @abstractmethod
    def _prepare(self, model: nn.Module) -> None:
        """Show the model to the observer as long as it is unprotected, and protect it in a silo."""

    def with_integers(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """FedML's average of silos' states, with whole numbers where the model has integers.

        FedML averages them as floating point, and loading cuts the rest off: of ten silos that all
        have 7, 6 may be left.
        """
        whole = {
            name: dtype
            for name, dtype in self._agreed().dtypes.items()
            if not (dtype.is_floating_point or dtype.is_complex)
            if isinstance(came := state.get(name), Tensor) and came.is_floating_point()
        }
        integers = as_integers(state, whole)
        return with_versions({**state, **integers}, state) if integers else state

    @property
    def _credentials(self) -> Credentials | None:
        """What silos agree on secrets with, if they need any."""
        return None if self.defense is None else self.defense.credentials

    @property
    def _comm(self) -> Any:
        """The communicator of all ranks; None over another backend than MPI."""
        return getattr(self.args, "comm", None)

    def _agreed(self) -> Agreement:
        """The agreement on the job's model, or HostError as long as that is not known."""
        if self.agreement is None:
            raise HostError(f"{self.who}: a message was sent before the job's model was locked")
        return self.agreement
