"""Remembers models and updates on the server, to check messages against earlier ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import NamedTuple

from torch import Tensor

from ..errors import UpdateRefused
from ..tensors import raw

__all__ = [
    "DuplicateDetector",
    "Sender",
    "UpdateHistory",
    "check_attackable",
    "check_names",
    "fingerprints",
]

SAMPLE = 64
"""How many numbers of each tensor a fingerprint uses."""


class Sender(NamedTuple):
    """The rank that sent a message, its silo if known, and the round's index.

    Example:
        >>> Sender(2, 1, 3).who
        'rank 2 (silo 1), round 3'

    """

    rank: int
    silo: int | None
    round: int

    @property
    def name(self) -> str:
        """The rank and its silo."""
        return f"rank {self.rank}" if self.silo is None else f"rank {self.rank} (silo {self.silo})"

    @property
    def who(self) -> str:
        """How messages about it begin."""
        return f"{self.name}, round {self.round}"


class UpdateHistory:
    """The server's memory of a job's messages."""

    def __init__(self) -> None:
        self._duplicates = DuplicateDetector()
        self._first: tuple[Sender, frozenset[str]] | None = None

    def add(self, update: Mapping[str, Tensor], sender: Sender) -> None:
        """Check an agreed update against the round's first and the silo's last, or raise."""
        if self._first is None or self._first[0].round != sender.round:
            self._first = sender, frozenset(update)
        check_names(update, self._first[1], who=sender.who, whose=self._first[0].name)
        self._duplicates.check(update, sender)

    def sending(self, receiver: int | None, model: Mapping[str, Tensor]) -> None:
        """Remember the model that the server is about to send to a rank, or to all (None)."""
        self._duplicates.sending(receiver, model)


class DuplicateDetector:
    """The server's memory of each silo's last update: eight bytes for each tensor, no state.

    A silo's training starts from the server's model. If that model has changed, at the places that
    fingerprints read, so has the silo's update, even without data or with a tiny step. An update
    equal to the last one bit for bit is a duplicate, sent by mistake. It does not stop an attacker,
    who could change a digit.

    Example:
        >>> import torch
        >>> detector, silo = DuplicateDetector(), Sender(1, 0, 0)
        >>> detector.sending(1, {"w": torch.zeros(3)})
        >>> detector.check({"w": torch.full((3,), 2.0)}, silo)
        >>> detector.sending(1, {"w": torch.ones(3)})
        >>> detector.check({"w": torch.full((3,), 2.0)}, silo)
        Traceback (most recent call last):
        fedml_keylock.errors.UpdateRefused: rank 1 (silo 0), round 0: it sent the update of round...

    """

    def __init__(self) -> None:
        self._models: dict[int | None, dict[str, bytes]] = {}
        self._newest: tuple[Mapping[str, Tensor], dict[str, bytes]] = ({}, {})
        # by silo: the round, and the fingerprints of the received model and of its update
        self._last: dict[int, tuple[int, dict[str, bytes], dict[str, bytes]]] = {}

    def sending(self, receiver: int | None, model: Mapping[str, Tensor]) -> None:
        """Remember the model that the server is about to send to a rank, or to all (None)."""
        if model is not self._newest[0]:  # all ranks get the same
            self._newest = (model, fingerprints(model))
        self._models[receiver] = self._newest[1]

    def check(self, update: Mapping[str, Tensor], sender: Sender) -> None:
        """Check an update against the silo's last one, and remember it.

        Raises:
            UpdateRefused: the silo sent the same before, and has received another model since.

        """
        model, own = self._models.get(sender.rank, self._models.get(None, {})), fingerprints(update)
        silo = sender.rank if sender.silo is None else sender.silo
        last_round, last_model, last = self._last.get(silo, (0, model, {}))
        changed = any(model.get(name) != last_model.get(name) for name in own)
        # all zeros are the gradient, or the difference, of a silo that did not train
        if own == last and changed and any(_some(t).any() for t in update.values()):
            raise UpdateRefused(
                f"{sender.who}: it sent the update of round {last_round} again, and the server's "
                "model has changed since; its trainer must load that model (set_model_params) "
                "and return what it trained (get_model_params)"
            )
        self._last[silo] = sender.round, model, own


def fingerprints(state: Mapping[str, Tensor]) -> dict[str, bytes]:
    """A digest of each tensor, from some of its numbers, always at the same places.

    Reading every byte of a model would take the server as long as averaging it.

    Example:
        >>> import torch
        >>> fingerprints({"w": torch.arange(3.0)}) == fingerprints({"w": torch.arange(3.0)})
        True
        >>> fingerprints({"w": torch.arange(3.0)}) == fingerprints({"w": torch.arange(3.0) + 1})
        False

    """
    return {n: blake2b(raw(_some(t)), digest_size=8).digest() for n, t in state.items()}


def _some(tensor: Tensor) -> Tensor:
    """Numbers of a tensor, evenly spaced, in one vector."""
    flat = tensor.detach().flatten()
    return flat[:: max(1, flat.numel() // SAMPLE)]


def check_names(
    update: Mapping[str, object], others: Iterable[str], *, who: str, whose: str
) -> None:
    """Check that a silo sends the same names as another one: FedML averages name by name.

    Raises:
        UpdateRefused: naming the first name that only one of them sends.

    Example:
        >>> check_names({"a": 1}, ["a", "b"], who="rank 2", whose="rank 1")
        Traceback (most recent call last):
        fedml_keylock.errors.UpdateRefused: rank 2: b is missing, which rank 1 sent; all silos must\
 send the same names

    """
    odd = sorted(update.keys() ^ set(others))
    if not odd:
        return
    how = (
        f"is sent, and was not by {whose}"
        if odd[0] in update
        else f"is missing, which {whose} sent"
    )
    raise UpdateRefused(f"{who}: {odd[0]} {how}; all silos must send the same names")


def check_attackable(
    update: Mapping[str, Tensor], before: Mapping[str, Tensor], *, who: str
) -> None:
    """Check that an update is a whole state: attacks read the gradient from its change.

    Raises:
        UpdateRefused: names are missing, or it is nearer to zero than to the state before, as
            gradients and differences are.

    Example:
        >>> import torch
        >>> check_attackable({"w": torch.tensor(0.1)}, {"w": torch.tensor(2.0)}, who="rank 1")
        Traceback (most recent call last):
        fedml_keylock.errors.UpdateRefused: rank 1: attack_type: gradient_inversion reads whole\
 states, and this update is a gradient or a difference; leave enable_attack out

    """
    what = next((f"has no {name}" for name in before if name not in update), "")
    if not what and before:
        size = sum(float(t.double().square().sum()) for t in update.values())
        moved = sum(float((t.double() - before[n]).square().sum()) for n, t in update.items())
        what = "is a gradient or a difference" if size < moved else ""
    if what:
        raise UpdateRefused(
            f"{who}: attack_type: gradient_inversion reads whole states, and this update {what}; "
            "leave enable_attack out"
        )
