"""The key of one job, from which every stream of secret numbers is derived by label."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .entropy import Stream

__all__ = ["JobKey"]

LABEL = b"fedml-keylock job key 3"


@dataclass(frozen=True)
class JobKey:
    """What all silos of a job derive its secret numbers from. Private.

    Attributes:
        root: 32 bytes.

    Example:
        >>> key = JobKey.derive(b"agreed", b"the first model's digest")
        >>> key.stream("rotation", 0).draw(4) == key.stream("rotation", 0).draw(4)
        True
        >>> key.stream("rotation", 0).draw(4) == key.stream("rotation", 1).draw(4)
        False

    """

    root: bytes = field(repr=False)

    @classmethod
    def derive(cls, secret: bytes, *context: bytes) -> JobKey:
        """The key of the silos' secret, bound to whatever distinguishes the job.

        Args:
            secret: what the silos have agreed on.
            context: such as a nonce, the first model's digest, or a further secret.

        """
        return cls(hashlib.sha256(_framed(LABEL, secret, *context)).digest())

    def stream(self, label: str, round_index: int) -> Stream:
        """The numbers of one purpose in one round."""
        place = (label.encode(), round_index.to_bytes(8, "big", signed=True))
        return Stream(_framed(LABEL, self.root, *place))

    @property
    def tensor(self) -> Tensor:
        """The key as the vault keeps it, ``(32,)`` bytes."""
        return torch.tensor(list(self.root), dtype=torch.uint8)

    @classmethod
    def from_tensor(cls, kept: Tensor) -> JobKey:
        """The key that `tensor` described."""
        return cls(bytes(kept.tolist()))


def _framed(*parts: bytes) -> bytes:
    """Parts in one, each behind its length, so that no two lists of parts are the same bytes."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)
