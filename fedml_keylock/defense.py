"""The interface between a job and its defense, in a silo and on the server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .privacy.canaries import CanaryEstimate
    from .types import Agreement, AttackerModel, Credentials, JobSecrets, PrivacyLoss, Schedule

__all__ = ["Defense", "DefenseFactory"]


class Defense(ABC):
    """A defense that wraps a silo's model: one object for each rank, made from its YAML section.

    A plugin's defense derives from it, and implements the abstract methods.
    """

    @property
    def title(self) -> str:
        """The name of the defense and its settings in reports."""
        return type(self).__name__

    @property
    def robust_aggregation(self) -> str | None:
        """FedML's own defense that its server runs on what silos send, or None."""
        return None

    @property
    def own_accuracy(self) -> bool:
        """Whether silos test the models that they receive, because the server cannot."""
        return True

    @property
    def log_training(self) -> bool:
        """Whether what a silo's trainer logs, such as losses, leaves the silo."""
        return False

    @property
    def transforms_updates(self) -> bool:
        """Whether a sent state is unrelated to the received one."""
        return False

    @property
    def server_reads(self) -> str:
        """What the server can read of what silos send, in words that end "it could read: "."""
        return "what its plugin leaves open"

    @property
    def seals(self) -> bool:
        """Whether silos send words for `add_up`, which the server cannot read."""
        return False

    @property
    def adds_noise(self) -> bool:
        """Whether silos clip and noise the difference that they send."""
        return False

    @property
    def wraps_model(self) -> bool:
        """Whether a silo must train exactly the model that was protected."""
        return True

    @property
    def credentials(self) -> Credentials | None:
        """The files with which silos agree on secrets; None for a defense without secrets."""
        return None

    @property
    def tells_samples(self) -> bool:
        """Whether the server is told how many samples each silo has."""
        return True

    @property
    def tells_accuracy(self) -> bool:
        """Whether silos' own accuracies leave them."""
        return True

    @abstractmethod
    def describe(self, model: nn.Module) -> Agreement:
        """The settings on which server and silos must agree, from the unprotected model."""

    @abstractmethod
    def protect(self, model: nn.Module, *, silo: int | None, agreement: Agreement) -> str:
        """Protect a silo's model in place, before training; describe it in one line.

        The silo is None in a rank that serves many in turn, which calls `enter_silo` in every
        round.
        """

    @abstractmethod
    def enter_silo(self, model: nn.Module, *, silo: int) -> str:
        """Load a silo's private state into a protected model, before a round; describe it.

        Only values change: an optimizer may already hold the model's parameters.
        """

    @abstractmethod
    def attacker_model(self, model: nn.Module) -> AttackerModel:
        """The attacker's model, from the unprotected public one."""

    @abstractmethod
    def baseline(
        self, model: nn.Module, protected: nn.Module
    ) -> tuple[nn.Module, Mapping[str, Tensor]]:
        """For a silo's audit of itself: a copy of its protected model, and its secret variables.

        The copy is made from the unprotected model, which has the same public state. The secret
        variables have the names of the attacker's model. Neither leaves the process.
        """

    def schedule(self, schedule: Schedule) -> int:
        """Called on every rank at the job's start: returns how many of its rounds to run.

        Raise ConfigError to refuse the job.
        """
        return len(schedule.rounds)

    def weigh(self, samples: float) -> float:
        """Called in a silo with its number of samples: returns its weight, which other silos learn.

        Raise ConfigError to refuse the number.
        """
        return samples

    def privacy_loss(self, silo: int) -> PrivacyLoss | None:
        """Called in a silo: returns what it has spent of its privacy; None without accounts."""
        return None

    def privacy_estimate(self) -> CanaryEstimate | None:
        """Called in a silo after the last round: its canaries' estimate of epsilon, or None.

        It stands beside the accounts of `privacy_loss`, and is not a bound.
        """
        return None

    def share(self, secrets: JobSecrets) -> None:  # noqa: B027  # nothing, where nothing is shared
        """Set the secrets that the silos have agreed on, before the first model arrives."""

    def begin_job(self, nonce: bytes) -> None:  # noqa: B027  # as above
        """Set the server's job nonce, before the first model arrives. It is not secret."""

    def open(
        self, model: nn.Module, message: Mapping[str, Tensor], *, round_index: int
    ) -> Mapping[str, Tensor]:
        """Called in a silo with the server's message: returns what FedML is to load instead.

        The message is the average of this round, or, with round -1, the first model.
        """
        return message

    def begin_round(self, model: nn.Module, *, round_index: int) -> None:  # noqa: B027  # as above
        """Called in a silo before it trains a round."""

    def batches(self, data: Any, *, silo: int) -> Any:
        """Called in a silo after `begin_round`: returns what it trains on in place of its data."""
        return data

    def end_round(self, model: nn.Module, *, round_index: int) -> bool:
        """Called in a silo before it sends what it trained; raise to stop it.

        Return False if the model did not train: then only its own state may be sent.
        """
        return True

    def seal(
        self, model: nn.Module, payload: Mapping[str, Tensor], *, samples: float
    ) -> Mapping[str, Tensor]:
        """Called in a silo with a payload that passed the gates: returns what is sent instead.

        Raise UpdateRefused, saying why, to send nothing. The samples are the silo's weight in the
        average.
        """
        return payload

    def add_up(self, messages: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """Called on the server of a sealing defense, in place of FedML's average."""
        raise NotImplementedError

    def rehearse(
        self,
        base: Mapping[str, Tensor],
        updates: Sequence[tuple[float, Mapping[str, Tensor]]],
    ) -> tuple[list[Mapping[str, Tensor]], Mapping[str, Tensor]]:
        """Run a round of a sealing defense in one process: returns messages and the opened average.

        Args:
            base: the payload that the silos received.
            updates: the samples and the payload of each silo.

        """
        raise NotImplementedError

    def enter_server(self) -> None:  # noqa: B027
        """Called on the server before the job: refuse files that could not be written later."""

    def keep(self, total: Mapping[str, Tensor], *, round_index: int) -> None:  # noqa: B027
        """Called on the server with the sum of a round."""

    def note(self, line: str, *, silo: int) -> None:  # noqa: B027
        """Called in a silo with a line for its own log, which does not leave it."""

    def finish(self, rounds: int, *, silo: int) -> None:  # noqa: B027
        """Called in a silo that received the final model, after so many rounds."""


DefenseFactory = Callable[[Mapping[str, Any]], Defense]
