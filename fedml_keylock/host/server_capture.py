"""A server that keeps what silos sent it, and attacks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..evaluation.capture import Capture
from ..types import Agreement, ClientUpdate, Defense
from .job_configuration import Arguments
from .server_attacker import Attacker

__all__ = ["ServerCapture"]


@dataclass
class ServerCapture:
    """The server's capture, and what it is attacked with.

    Attributes:
        attacker: the section's attacks, which see the test data first.
        capture: on disk.
        model: the job's, as it was before it was protected.
        defense: the job's, or None.
        each: updates that a round brings.
        seed: of the attacks.

    """

    attacker: Attacker
    capture: Capture
    model: nn.Module = field(repr=False)
    defense: Defense | None
    each: int
    seed: int
    _came: int = 0

    @classmethod
    def begin(
        cls,
        attacker: Attacker,
        args: Arguments,
        model: nn.Module,
        defense: Defense | None,
        *,
        name: str | None,
        agreement: Agreement | None,
    ) -> ServerCapture:
        """Begin the capture; the defense's name and its agreement go into the capture's notes.

        Raises:
            AttackError: the folder holds a capture already, or cannot be written.

        """
        meta = {
            "learning_rate": float(args.learning_rate),
            "client_optimizer": str(getattr(args, "client_optimizer", "")),
            "batch_size": int(getattr(args, "batch_size", 0)),
            "epochs": int(getattr(args, "epochs", 1) or 1),
            "rounds": int(args.comm_round),
            "bounds": list(attacker.bounds),
            "defense": name,
            "settings": dict(agreement.settings) if agreement else {},
            "layers": list(agreement.layers) if agreement else [],
        }
        return cls(
            attacker,
            Capture.create(attacker.settings.output / "capture", meta),
            model,
            defense,
            int(args.client_num_per_round),
            int(getattr(args, "random_seed", 0)),
        )

    def add(self, update: ClientUpdate) -> None:
        """Keep an update of a round that is captured; attack the round when it is there.

        Raises:
            AttackError: it cannot be kept, or not be attacked.

        """
        self.capture.add(update)
        self._came += 1
        if self.attacker.settings.when == "inline" and self._came % self.each == 0:
            self._attack(update.round)  # while FedML waits to aggregate

    def finish(self, received: Mapping[str, Tensor] | None) -> None:
        """The job is over: attack all of it, if that was not done.

        Args:
            received: after the last round the server still sends the model.

        """
        if received is not None:
            self.capture.finish(received)
        if self.attacker.settings.when == "after":
            self._attack()

    def _attack(self, round_index: int | None = None) -> None:
        self.attacker.run(
            self.capture, self.model, self.defense, seed=self.seed, round_index=round_index
        )
