"""Rotates what one silo sends and rotates back what it receives, under the job's key."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import HostError, VaultError
from ..job_key import JobKey
from ..private import Private
from .round_rotation import Part, RoundRotation

__all__ = ["Rotation"]

SAMPLE = 1024
"""How many numbers of a model are remembered at most."""
LIKE = 0.2
"""The least cosine between the weights of two rounds of a job. Between 1,024 numbers of a model and
noise it is smaller in all but one of 10 billion cases."""


@dataclass
class Rotation(Private):
    """The job's key, and the silo's current round. Private.

    Attributes:
        parts: of the state.
        key: of the job; None before the first model is received.
        round: index of the next round to send.
        sample: some numbers of the last sent state, to notice decoding with the wrong round's key.

    """

    parts: tuple[Part, ...]
    key: JobKey | None = field(default=None, repr=False)
    round: int = 0
    sample: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)

    def rotate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rotate a whole state for this round.

        Raises:
            UpdateRefused: an entry is missing.

        """
        # FedML takes a plain dict for the state of one silo
        rotated = OrderedDict({**state, **self._round_rotation(self.round).rotate(state)})
        self.sample = self._sample_of(state)
        return rotated

    def restore(self, state: Mapping[str, Tensor], *, round_index: int) -> dict[str, Tensor]:
        """Rotate the average of a round back.

        Raises:
            UpdateRefused: an entry is missing.

        """
        return OrderedDict({**state, **self._round_rotation(round_index).rotate_back(state)})

    def is_like(self, state: Mapping[str, Tensor]) -> bool:
        """Whether a state can be of the same job as the last sent one.

        Decoded with another round's key it is noise, in no direction of the model.
        """
        sample = self._sample_of(state)
        if len(sample) != len(self.sample):
            return not len(self.sample)  # nothing to compare with
        return bool(F.cosine_similarity(sample, self.sample, dim=0) >= LIKE)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors for the vault."""
        key = torch.zeros(0, dtype=torch.uint8) if self.key is None else self.key.tensor
        return {
            "rotated.key": key,
            "rotated.round": torch.tensor(self.round),
            "rotated.sample": self.sample,
        }

    @property
    def variables(self) -> dict[str, Tensor]:
        """What an audit rotates states back with: the key, the last received and the next round."""
        assert self.key is not None
        rounds = {"before": self.round - 1, "after": self.round}
        return {"key": self.key.tensor, **{n: torch.tensor(r) for n, r in rounds.items()}}

    def load(self, kept: Mapping[str, Tensor]) -> None:
        """Load the tensors from the vault.

        Raises:
            VaultError: they belong to another lock; nothing has changed.

        """
        odd = sorted(self.tensors.keys() ^ kept.keys())
        if (
            odd
            or kept["rotated.key"].dtype != torch.uint8
            or len(kept["rotated.key"]) not in (0, 32)
        ):
            raise VaultError(f"the private state is that of another lock: {[*odd, 'its key'][0]}")
        self.key = JobKey.from_tensor(kept["rotated.key"]) if len(kept["rotated.key"]) else None
        self.round = int(kept["rotated.round"])
        self.sample = kept["rotated.sample"].clone()

    def _round_rotation(self, round_index: int) -> RoundRotation:
        if self.key is None:
            raise HostError("the lock has not seen the job's first model, and has no key to use")
        return RoundRotation(self.parts, self.key, round_index)

    def _sample_of(self, state: Mapping[str, Tensor]) -> Tensor:
        """Some numbers of a state's parameters, evenly spaced."""
        flat = torch.cat([state[n].detach().cpu().flatten().float() for n in self.parts[0].names])
        return flat[torch.linspace(0, len(flat) - 1, min(len(flat), SAMPLE)).long()]
