"""The key of one job, from which every stream of secret numbers is derived by label."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..types import JobSecrets
from .entropy import Stream

__all__ = ["JobKey"]

LABEL = b"fedml-keylock job key 2"


@dataclass(frozen=True)
class JobKey:
    """What a silo derives its secret numbers from, in one job. Private.

    Attributes:
        root: 32 bytes that all silos of the job have.
        silo: index of this one.
        pairs: by another silo's index, 32 bytes that only these two have.
        samples: of every silo, by its index.

    Example:
        >>> key = JobKey.derive(JobSecrets(b"agreed"), b"the first model's digest")
        >>> key.stream("rotation", 0).draw(4) == key.stream("rotation", 0).draw(4)
        True
        >>> key.stream("rotation", 0).draw(4) == key.stream("rotation", 1).draw(4)
        False

    """

    root: bytes = field(repr=False)
    silo: int = 0
    pairs: Mapping[int, bytes] = field(default_factory=dict, repr=False)
    samples: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def derive(cls, secrets: JobSecrets, *context: bytes) -> JobKey:
        """The key of the silos' secrets, bound to whatever distinguishes the job.

        Args:
            secrets: what the silos have agreed on.
            context: such as a nonce, the first model's digest, or a further secret.

        """
        root = hashlib.sha256(_framed(LABEL, secrets.group, *context)).digest()
        return cls(root, secrets.silo, dict(secrets.pairs), dict(secrets.samples))

    def stream(self, label: str, round_index: int, *, peer: int | None = None) -> Stream:
        """The numbers of one purpose in one round.

        Args:
            label: of the purpose.
            round_index: of the round.
            peer: index of the other silo that has the same stream; None for all silos.

        """
        secret = () if peer is None else (self.pairs[peer],)
        place = (label.encode(), round_index.to_bytes(8, "big", signed=True))
        return Stream(_framed(LABEL, self.root, *place, *secret))

    def unpaired(self) -> JobKey:
        """The same key without the pairs' secrets."""
        return replace(self, pairs={})

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The key as the vault keeps it, name to tensor."""
        peers, silos = sorted(self.pairs), sorted(self.samples)
        secrets = [list(self.pairs[peer]) for peer in peers]
        return {
            "key": torch.tensor(list(self.root), dtype=torch.uint8),
            "silo": torch.tensor(self.silo),
            "peers": torch.tensor(peers, dtype=torch.int64),
            "pairs": torch.tensor(secrets, dtype=torch.uint8).view(-1, 32),
            "silos": torch.tensor(silos, dtype=torch.int64),
            "samples": torch.tensor([self.samples[silo] for silo in silos], dtype=torch.int64),
        }

    @classmethod
    def from_tensors(cls, kept: Mapping[str, Tensor]) -> JobKey:
        """The key that `tensors` described."""
        secrets = [bytes(secret) for secret in kept["pairs"].tolist()]
        return cls(
            bytes(kept["key"].tolist()),
            int(kept["silo"]),
            dict(zip(kept["peers"].tolist(), secrets, strict=True)),
            dict(zip(kept["silos"].tolist(), kept["samples"].tolist(), strict=True)),
        )


def _framed(*parts: bytes) -> bytes:
    """Parts in one, each behind its length, so that no two lists of parts are the same bytes."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)
