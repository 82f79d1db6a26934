"""One silo's hold on a job's rotations: what it sends is rotated, what comes is rotated back."""

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
from .turns import Part, Turns

__all__ = ["Rotation"]

SAMPLE = 1024
"""Numbers of a model that are remembered of it, at the most."""
LIKE = 0.2
"""The least cosine of the weights of two rounds of a job; that of 1,024 numbers of a model and of
noise is below it in all but one of 10 billion cases."""


@dataclass
class Rotation(Private):
    """The job's key, and the round that the silo is in. Private.

    Attributes:
        parts: of the state.
        key: of the job; None before the first model came.
        round: index of the round that is sent next.
        sample: some numbers of the state that was sent last, to notice the wrong round's key.

    """

    parts: tuple[Part, ...]
    key: JobKey | None = field(default=None, repr=False)
    round: int = 0
    sample: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)

    def rotate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A whole state as it is sent in this round.

        Raises:
            UpdateRefused: an entry is missing.

        """
        # FedML takes a plain dict for one state a silo
        rotated = OrderedDict({**state, **self._turns(self.round).turned(state)})
        self.sample = self._sample_of(state)
        return rotated

    def restore(self, state: Mapping[str, Tensor], *, round_index: int) -> dict[str, Tensor]:
        """The average of a round, as it was before it was rotated.

        Raises:
            UpdateRefused: an entry is missing.

        """
        return OrderedDict({**state, **self._turns(round_index).opened(state)})

    def is_like(self, state: Mapping[str, Tensor]) -> bool:
        """Whether a state can be of the same job as the one that was sent last.

        What was rotated back by another round's key is noise, of no direction that the model has.
        """
        sample = self._sample_of(state)
        if len(sample) != len(self.sample):
            return not len(self.sample)  # nothing was remembered
        return bool(F.cosine_similarity(sample, self.sample, dim=0) >= LIKE)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What the vault keeps."""
        key = torch.zeros(0, dtype=torch.uint8) if self.key is None else self.key.tensor
        return {
            "rotated.key": key,
            "rotated.round": torch.tensor(self.round),
            "rotated.sample": self.sample,
        }

    @property
    def variables(self) -> dict[str, Tensor]:
        """What opens states: the key, the round that was received last and the one sent next."""
        assert self.key is not None
        rounds = {"before": self.round - 1, "after": self.round}
        return {"key": self.key.tensor, **{n: torch.tensor(r) for n, r in rounds.items()}}

    def load(self, kept: Mapping[str, Tensor]) -> None:
        """Take what the vault kept.

        Raises:
            VaultError: it is of another lock; nothing has changed.

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

    def _turns(self, round_index: int) -> Turns:
        if self.key is None:
            raise HostError("the lock has not seen the job's first model, and has no key to use")
        return Turns(self.parts, self.key, round_index)

    def _sample_of(self, state: Mapping[str, Tensor]) -> Tensor:
        """Some numbers of a state's parameters, evenly spread."""
        flat = torch.cat([state[n].detach().cpu().flatten().float() for n in self.parts[0].names])
        return flat[torch.linspace(0, len(flat) - 1, min(len(flat), SAMPLE)).long()]
