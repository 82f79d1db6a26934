"""What a job asks of its defense, in a silo and on the server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .privacy.canaries import CanaryEstimate
    from .types import Agreement, Credentials, JobSecrets, PrivacyLoss, Schedule, Surrogate

__all__ = ["Defense", "DefenseFactory"]


class Defense(ABC):
    """A defense that wraps a silo's model: one object a rank, built from its own YAML section.

    A plugin's is derived from it, and says what is abstract here.
    """

    @property
    def title(self) -> str:
        """How reports name it and its settings."""
        return type(self).__name__

    @property
    def robust_aggregation(self) -> str | None:
        """FedML's own defense that its server is to run on what silos send; None: no other."""
        return None

    @property
    def own_accuracy(self) -> bool:
        """Whether silos test the models that they are given, as the server cannot."""
        return True

    @property
    def log_training(self) -> bool:
        """Whether what a silo's trainer logs, such as losses, leaves the silo."""
        return False

    @property
    def transforms_updates(self) -> bool:
        """Whether a state that is sent has nothing in common with the one that was received."""
        return False

    @property
    def server_reads(self) -> str:
        """What the server can read of what silos send, in words that end "it could read: "."""
        return "what its plugin leaves open"

    @property
    def seals(self) -> bool:
        """Whether what silos send are words for `add_up`, which their server cannot read."""
        return False

    @property
    def adds_noise(self) -> bool:
        """Whether silos clip and noise what they send, as a difference from what came."""
        return False

    @property
    def wraps_model(self) -> bool:
        """Whether what a silo trains must be the model that was protected."""
        return True

    @property
    def credentials(self) -> Credentials | None:
        """What the silos agree on secrets with; None for a defense that needs none of them."""
        return None

    @property
    def tells_samples(self) -> bool:
        """Whether the server is told how many samples each silo has."""
        return True

    @property
    def tells_accuracy(self) -> bool:
        """Whether what silos measure of the models that they are given leaves them."""
        return True

    @abstractmethod
    def describe(self, model: nn.Module) -> Agreement:
        """What server and silos must agree on, from the model as it is before it is protected."""

    @abstractmethod
    def protect(self, model: nn.Module, *, silo: int | None, agreement: Agreement) -> str:
        """Protect a silo's model in place, before any training; say what was done in one line.

        The silo is None in a rank that serves many in turn: `enter_silo` follows in every round.
        """

    @abstractmethod
    def enter_silo(self, model: nn.Module, *, silo: int) -> str:
        """Put a silo's own private state into a protected model, before a round; say what was done.

        Only values change: an optimizer may hold the model's parameters already.
        """

    @abstractmethod
    def surrogate(self, model: nn.Module) -> Surrogate:
        """Give an attacker who knows this defense his model, from the unprotected public one."""

    @abstractmethod
    def twin(
        self, model: nn.Module, protected: nn.Module
    ) -> tuple[nn.Module, Mapping[str, Tensor]]:
        """For a silo's audit of itself: a copy of its protected model.

        It is made from the unprotected one, which has the same public state. Beside it, what the
        surrogate's private parameters are in it. Neither leaves the process.
        """

    def schedule(self, schedule: Schedule) -> int:
        """Called on every rank at the job's start: how many of its rounds are to be run.

        Raise ConfigError to refuse the job.
        """
        return len(schedule.rounds)

    def weigh(self, samples: float) -> float:
        """Called in a silo with its number of samples: its weight, as other silos are told it.

        Raise ConfigError to refuse the number.
        """
        return samples

    def privacy_loss(self, silo: int) -> PrivacyLoss | None:
        """Called in a silo: what of its privacy it has spent so far; None for no such accounts."""
        return None

    def privacy_estimate(self) -> CanaryEstimate | None:
        """Called in a silo after the last round: what its canaries tell of epsilon; None for none.

        It is beside the accounts of `privacy_loss`, and no bound.
        """
        return None

    def share(self, secrets: JobSecrets) -> None:  # noqa: B027  # nothing, where nothing is shared
        """Take what the silos have agreed on, before the first model comes."""

    def begin_job(self, nonce: bytes) -> None:  # noqa: B027  # as above
        """Take the server's nonce of this job, before the first model comes. It is no secret."""

    def open(
        self, model: nn.Module, message: Mapping[str, Tensor], *, round_index: int
    ) -> Mapping[str, Tensor]:
        """Called in a silo with what the server has sent: what FedML is to load in its place.

        It is the average of what silos sent in this round, or with -1 the first model.
        """
        return message

    def begin_round(self, model: nn.Module, *, round_index: int) -> None:  # noqa: B027  # as above
        """Called in a silo that is about to train a round."""

    def batches(self, data: Any, *, silo: int) -> Any:
        """Called in a silo after `begin_round`: what it is to train on in place of its data."""
        return data

    def end_round(self, model: nn.Module, *, round_index: int) -> bool:
        """Called in a silo before it sends what it trained; raise to stop it.

        False when nothing happened to the model: then nothing but its own state may be sent.
        """
        return True

    def seal(
        self, model: nn.Module, payload: Mapping[str, Tensor], *, samples: float
    ) -> Mapping[str, Tensor]:
        """Called in a silo with what passed the gates: what is sent in its place.

        Raise UpdateRefused, saying why, to send nothing. The samples are the silo's weight in the
        average.
        """
        return payload

    def add_up(self, messages: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """Called on the server of a defense that seals, in place of FedML's average."""
        raise NotImplementedError

    def rehearse(
        self,
        base: Mapping[str, Tensor],
        updates: Sequence[tuple[float, Mapping[str, Tensor]]],
    ) -> tuple[list[Mapping[str, Tensor]], Mapping[str, Tensor]]:
        """A round of a defense that seals, in one process: messages, and the average opened.

        Args:
            base: what the silos have received.
            updates: of each silo, its samples and its payload.

        """
        raise NotImplementedError

    def enter_server(self) -> None:  # noqa: B027
        """Called on the server before the job: refuse what could not be written later."""

    def keep(self, total: Mapping[str, Tensor], *, round_index: int) -> None:  # noqa: B027
        """Called on the server with the sum of a round."""

    def note(self, line: str, *, silo: int) -> None:  # noqa: B027
        """Called in a silo with a line for its own log, which does not leave it."""

    def finish(self, rounds: int, *, silo: int) -> None:  # noqa: B027
        """Called in a silo that was given the final model, after so many rounds."""


DefenseFactory = Callable[[Mapping[str, Any]], Defense]
