"""Stores what opens a round's sum, and for audits what opens the silo's own message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import VaultError
from .encoding import Encoding, chunks
from .entries import entries_of
from .keystream import Keystream
from .sealing import TRAILER_WORDS, Opened, RoundKeys, open_sum
from .shares import Shares

__all__ = ["Record"]

BASE = "base."


@dataclass(frozen=True)
class Record:
    """The keys of one round. They open the round's sum, but no silo's message without the covers.

    Attributes:
        encoding: of the round.
        round: its index.
        place: index of the silo among the participants.
        pad_key: of S_0.
        tag_key: of the round.
        covers: keys and signs of the keystreams over this silo's own message; empty but for audits.
        came: the last words of the sum that the round began with, which identify its checkpoint;
            empty in the first round.

    """

    encoding: Encoding
    round: int
    place: int
    pad_key: bytes = field(repr=False)
    tag_key: bytes = field(repr=False)
    covers: tuple[tuple[bytes, int], ...] = field(default=(), repr=False)
    came: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        encoding: Encoding,
        keys: RoundKeys,
        round_index: int,
        *,
        own: bool = False,
        came: tuple[int, ...] = (),
    ) -> Record:
        """The record of a round, from what it was sealed with.

        Args:
            encoding: of the round.
            keys: of the round.
            round_index: of the round.
            own: whether to keep the keys that open this silo's own message.
            came: see the attribute.

        """
        covers = tuple(keys.covers()) if own else ()
        pad, tag = keys.pad_key(0), keys.tag_key()
        return cls(encoding, round_index, keys.place, pad, tag, covers, came)

    @property
    def pads(self) -> int:
        """How many of the covers are pads, at the end; the others are pairwise masks."""
        return 1 if self.place + 1 == len(self.encoding.shares.samples) else 2

    def open(self, total: Mapping[str, Tensor]) -> Opened:
        """Verify and open the round's sum.

        Raises:
            UpdateRefused: it is not that round's sum.

        """
        return open_sum(self.encoding, total, pad_key=self.pad_key, tag_key=self.tag_key)

    def uncover(self, message: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Recover the silo's own payload, to rounding, from its message. For audits."""
        encoding = self.encoding
        share = encoding.shares.total / encoding.shares.samples[self.place]
        streams = [(Keystream(key), sign) for key, sign in self.covers]

        def uncovered(wire: Tensor) -> Iterator[NDArray[np.int32]]:
            for words in chunks(wire.detach().cpu().contiguous().view(-1).numpy()):
                part = words.copy()
                for stream, sign in streams:
                    secret = stream.words(len(part))
                    (np.subtract if sign > 0 else np.add)(part, secret, out=part)
                yield part

        return {
            entry.name: encoding.decode(entry, step, uncovered(message[entry.name]), share=share)
            for entry, step in zip(encoding.entries, encoding.steps, strict=True)
        }

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The record as the vault stores it, name to tensor."""
        keys = [list(key) for key in (self.pad_key, self.tag_key, *(k for k, _ in self.covers))]
        signs = [sign for _, sign in self.covers]
        if signs and self.pads == 1:  # all silos' records have the same shapes
            keys, signs = [*keys, [0] * len(self.pad_key)], [*signs, 0]
        return {
            "sealed.round": torch.tensor(self.round),
            "sealed.place": torch.tensor(self.place),
            "sealed.samples": torch.tensor(self.encoding.shares.samples, dtype=torch.int64),
            "sealed.steps": torch.tensor(self.encoding.steps, dtype=torch.int64),
            "sealed.keys": torch.tensor(keys, dtype=torch.uint8),
            "sealed.noised": torch.tensor([e.kind == "noised" for e in self.encoding.entries]),
            "sealed.scale": torch.tensor(self.encoding.scale, dtype=torch.float64),
            "sealed.signs": torch.tensor(signs, dtype=torch.int64),
            "sealed.came": torch.tensor(self.came or [0] * TRAILER_WORDS, dtype=torch.int32),
            **{BASE + name: tensor for name, tensor in self.encoding.base.items()},
        }

    @classmethod
    def from_tensors(cls, kept: Mapping[str, Tensor]) -> Record:
        """The inverse of `tensors`.

        Raises:
            VaultError: the tensors are not a record.

        """
        try:
            base = {n.removeprefix(BASE): t for n, t in kept.items() if n.startswith(BASE)}
            shares = Shares(tuple(kept["sealed.samples"].tolist()))
            steps = tuple(kept["sealed.steps"].tolist())
            pad, tag, *covers = (bytes(key) for key in kept["sealed.keys"].tolist())
            signs = kept["sealed.signs"].tolist()
            noised = kept["sealed.noised"].tolist()
            entries = tuple(
                replace(entry, kind="noised") if odd else entry
                for entry, odd in zip(entries_of(base), noised, strict=True)
            )
            encoding = Encoding(base, entries, steps, shares, float(kept["sealed.scale"]))
            place, round_index = int(kept["sealed.place"]), int(kept["sealed.round"])
            signed = tuple((k, sign) for k, sign in zip(covers, signs, strict=True) if sign)
            came = tuple(kept["sealed.came"].tolist()) if round_index else ()
            return cls(encoding, round_index, place, pad, tag, signed, came)
        except (KeyError, ValueError, TypeError) as error:
            raise VaultError(f"the private state is that of another lock: {error}") from None
