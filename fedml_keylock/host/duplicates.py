"""Notices a silo that sends an update which it has sent before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

from torch import Tensor

from ..errors import UpdateRefused
from ..tensors import raw

__all__ = ["Replays", "fingerprints"]

SAMPLE = 64
"""Numbers of each tensor that a fingerprint is made of."""


def fingerprints(state: Mapping[str, Tensor]) -> dict[str, bytes]:
    """A digest of each tensor, from some of its numbers, always those at the same places.

    To read a model's every byte would take the server as long as to average it.

    Example:
        >>> import torch
        >>> fingerprints({"w": torch.arange(3.0)}) == fingerprints({"w": torch.arange(3.0)})
        True
        >>> fingerprints({"w": torch.arange(3.0)}) == fingerprints({"w": torch.arange(3.0) + 1})
        False

    """
    return {n: blake2b(raw(_some(t)), digest_size=8).digest() for n, t in state.items()}


class Replays:
    """The server's memory of each silo's last update: eight bytes for each tensor, no state.

    A silo that trains starts at the server's model. When that has changed, at the places that the
    fingerprints read, then so has what comes back, even from a silo without data or with a step too
    small to see. The same again, bit for bit, is what the silo sent before. That is a mistake:
    whoever means harm changes a digit.

    Example:
        >>> import torch
        >>> replays = Replays()
        >>> replays.sent(1, {"w": torch.zeros(3)})
        >>> replays.check(1, 0, {"w": torch.full((3,), 2.0)}, round_index=0, who="silo 0")
        >>> replays.sent(1, {"w": torch.ones(3)})
        >>> replays.check(1, 0, {"w": torch.full((3,), 2.0)}, round_index=1, who="silo 0")
        Traceback (most recent call last):
        fedml_keylock.errors.UpdateRefused: silo 0: it sent the update of round 0 again...

    """

    def __init__(self) -> None:
        self._models: dict[int | None, dict[str, bytes]] = {}
        self._newest: tuple[Mapping[str, Tensor], dict[str, bytes]] = ({}, {})
        self._seen: dict[int, _Seen] = {}

    def sent(self, rank: int | None, model: Mapping[str, Tensor]) -> None:
        """The server is about to send a rank, or all of them (None), its model."""
        if model is not self._newest[0]:  # the same goes to every rank
            self._newest = (model, fingerprints(model))
        self._models[rank] = self._newest[1]

    def check(
        self,
        rank: int,
        silo: int | None,
        update: Mapping[str, Tensor],
        *,
        round_index: int,
        who: str,
    ) -> None:
        """A rank has sent a silo's update, which has passed the gate.

        Raises:
            UpdateRefused: the silo sent the same before, and was sent another model since.

        """
        model = self._models.get(rank, self._models.get(None, {}))
        now = _Seen(round_index, model, fingerprints(update))
        last = self._seen.get(rank if silo is None else silo)
        # all zeros are the gradient, or the difference, of a silo that has nothing to say
        if last is not None and now.repeats(last) and any(_some(t).any() for t in update.values()):
            raise UpdateRefused(
                f"{who}: it sent the update of round {last.round_index} again, and the server's "
                "model has changed since; its trainer must take that up (set_model_params) and "
                "return what it trained (get_model_params)"
            )
        self._seen[rank if silo is None else silo] = now


@dataclass(frozen=True)
class _Seen:
    """What a silo was sent and what it sent back, by their fingerprints, and when."""

    round_index: int
    model: Mapping[str, bytes]
    update: Mapping[str, bytes]

    def repeats(self, last: _Seen) -> bool:
        """Whether the update is the last one, and the model that it is to start at is not."""
        return self.update == last.update and any(
            self.model.get(name) != last.model.get(name) for name in self.update
        )


def _some(tensor: Tensor) -> Tensor:
    """Numbers of a tensor, evenly spread, in one vector."""
    flat = tensor.detach().flatten()
    return flat[:: max(1, flat.numel() // SAMPLE)]
