"""The key of one job, which derives every stream of secret numbers by label."""

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
    """The key from which all silos of a job derive their secret numbers. Private.

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
        """Derive the job's key from the silos' secret, bound to whatever distinguishes the job.

        Args:
            secret: what the silos have agreed on.
            context: such as a job nonce, the first model's digest, or a further secret.

        """
        return cls(hashlib.sha256(_framed(LABEL, secret, *context)).digest())

    def stream(self, label: str, round_index: int) -> Stream:
        """The random stream for one purpose in one round."""
        place = (label.encode(), round_index.to_bytes(8, "big", signed=True))
        return Stream(_framed(LABEL, self.root, *place))

    @property
    def tensor(self) -> Tensor:
        """The key as the vault stores it, ``(32,)`` bytes."""
        return torch.tensor(list(self.root), dtype=torch.uint8)

    @classmethod
    def from_tensor(cls, kept: Tensor) -> JobKey:
        """The key that `tensor` stored."""
        return cls(bytes(kept.tolist()))


def _framed(*parts: bytes) -> bytes:
    """Join parts, each after its length, so that different lists never give the same bytes."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)
