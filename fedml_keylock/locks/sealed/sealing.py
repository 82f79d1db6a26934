"""One message of one silo in one round: words under pairwise masks and pads, with a tag."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import UpdateRefused
from .encoding import Counts, Encoding, chunks
from .keystream import Keystream, derive
from .noise import Noise, Release
from .tag import TAG_WORDS, Tag, join_tags, split_tags

__all__ = ["TRAILER", "TRAILER_WORDS", "Opened", "RoundKeys", "add_up", "open_sum", "seal"]

TRAILER = "keylock.sealed"
"""The entry of a message that holds its counters and its tags."""
COUNTERS = 2
"""Words of the counters: entries clipped, and entries that are NaN or infinite. Under noise: the
noised sum of votes for the clip, and nothing."""
TRAILER_WORDS = COUNTERS + TAG_WORDS


@dataclass(frozen=True)
class RoundKeys:
    """The secrets of one round. A key of them makes the keystream of one message only.

    Attributes:
        group: 32 bytes that all participants have.
        pairs: by the place of a neighbour, 32 bytes that only these two have.
        place: of this silo among the participants, from 0.
        participants: m, how many there are.
        context: whatever all must agree on: every key is bound to it.

    """

    group: bytes = field(repr=False)
    pairs: Mapping[int, bytes] = field(repr=False)
    place: int
    participants: int
    context: bytes

    def pad_key(self, place: int) -> bytes:
        """The key of S_l: the pads of all participants add up to S_0."""
        return derive(self.group, "pad", self.context, place.to_bytes(4, "big"))

    def mask_key(self, neighbour: int) -> bytes:
        """The key of what the lower of two neighbours adds and the higher subtracts."""
        low, high = sorted((self.place, neighbour))
        places = low.to_bytes(4, "big") + high.to_bytes(4, "big")
        return derive(self.pairs[neighbour], "mask", self.context, places)

    def tag_key(self) -> bytes:
        """The key of the round's tag, which all participants' messages share."""
        return derive(self.group, "tag", self.context)

    def covers(self) -> list[tuple[bytes, int]]:
        """The key of every keystream that lies over this silo's words, with its sign."""
        found = [(self.mask_key(n), 1 if self.place < n else -1) for n in sorted(self.pairs)]
        found.append((self.pad_key(self.place), 1))
        if self.place + 1 < self.participants:
            found.append((self.pad_key(self.place + 1), -1))
        return found


def seal(
    encoding: Encoding,
    payload: Mapping[str, Tensor],
    keys: RoundKeys,
    release: Release | None = None,
) -> tuple[dict[str, Tensor], Counts]:
    """A payload as it leaves the silo: int32 words under the payload's own names, and TRAILER.

    Args:
        encoding: of the round.
        payload: name to tensor, with the names and shapes of the encoding's base.
        keys: of the round; they serve no second message.
        release: of a round under noise; of the payload nothing but what it gives is sent.

    Raises:
        LockError: what it gives is longer than its clip.

    Returns:
        The message, and what had to be clipped.

    """
    tag, counts, noise = Tag(keys.tag_key()), Counts(), Noise()
    streams = [(Keystream(key), sign) for key, sign in keys.covers()]

    def cover(words: NDArray[np.int32], into: NDArray[np.int32]) -> None:
        into[:] = words
        for stream, sign in streams:
            secret = stream.words(len(words))
            (np.add if sign > 0 else np.subtract)(into, secret, out=into)

    # FedML takes a plain dict for one state a silo
    sealed: dict[str, Tensor] = OrderedDict()
    for entry, step in zip(encoding.entries, encoding.steps, strict=True):
        wire = torch.empty(entry.wire_shape, dtype=torch.int32)
        flat, start = wire.view(-1).numpy(), 0
        if release is None:
            pieces = encoding.encode(entry, step, payload[entry.name], keys.place, counts)
        elif entry.name in release.grids:
            grid = release.grids[entry.name]
            pieces = (
                release.sent(entry, noise.over(words, grid)) for words in release.words(entry)
            )
        else:  # as it came
            came = encoding.base[entry.name]
            pieces = encoding.encode(entry, step, came, keys.place, counts)
        for words in pieces:
            tag.update(words)
            cover(words, flat[start : start + len(words)])
            start += len(words)
        sealed[entry.name] = wire
    most = (2**31 - 1) // keys.participants
    counters = np.array([min(counts.clipped, most), min(counts.infinite, most)], dtype=np.int32)
    if release is not None:  # nothing was counted: that would tell of one silo's numbers
        release.check()
        if (vote := release.vote()) is not None:
            counters[:1] = noise.over(np.array(vote[:1], dtype=np.int32), vote[1])
    tag.update(counters)
    trailer = torch.empty(TRAILER_WORDS, dtype=torch.int32)
    cover(np.concatenate([counters, split_tags(tag.value)]), trailer.numpy())
    sealed[TRAILER] = trailer
    return sealed, counts


@dataclass(frozen=True)
class Opened:
    """A sum that was verified.

    Attributes:
        state: the average, name to tensor, in the order of the base: jobs load by place, too.
        counts: of all participants together; nothing under noise.
        votes: under noise, the first counter.
        digest: SHA-256 of the opened words. Not the tags: whoever has their key, as every silo
            has, can make other words with the same.

    """

    state: dict[str, Tensor] = field(repr=False)
    counts: Counts
    digest: bytes = field(repr=False)
    votes: int = 0


def open_sum(
    encoding: Encoding, message: Mapping[str, Tensor], *, pad_key: bytes, tag_key: bytes
) -> Opened:
    """Verify the sum of all participants' messages, and decode it.

    Args:
        encoding: of the round.
        message: the sum, modulo 2^32.
        pad_key: of S_0.
        tag_key: of the round.

    Raises:
        UpdateRefused: it is not the sum of what the participants have sealed in this round.

    """
    check_form(encoding, message)
    tag, pad, digest = Tag(tag_key), Keystream(pad_key), hashlib.sha256()

    def uncovered(wire: Tensor) -> Iterator[NDArray[np.int32]]:
        for words in chunks(wire.detach().cpu().contiguous().view(-1).numpy()):
            part = words - pad.words(len(words))
            tag.update(part)
            digest.update(part.data)
            yield part

    state: dict[str, Tensor] = {}
    for entry, step in zip(encoding.entries, encoding.steps, strict=True):
        state[entry.name] = encoding.decode(entry, step, uncovered(message[entry.name]))
    trailer = message[TRAILER].detach().cpu().numpy() - pad.words(TRAILER_WORDS)
    tag.update(trailer[:COUNTERS])
    if join_tags(trailer[COUNTERS:], len(encoding.shares.samples)) != tag.value:
        raise UpdateRefused(
            "the average that came is not the sum of what the silos sent in this round, with each "
            "of them once: the server, or who stands between, has changed it; nothing was loaded"
        )
    ordered = OrderedDict((name, state[name]) for name in encoding.base)
    if encoding.noised:
        return Opened(ordered, Counts(), digest.digest(), votes=int(trailer[0]))
    return Opened(ordered, Counts(int(trailer[0]), int(trailer[1])), digest.digest())


def check_form(encoding: Encoding, message: Mapping[str, Tensor]) -> None:
    """Check names, shapes and types of a sealed message.

    Raises:
        UpdateRefused: naming the first entry that is not as it must be.

    """
    wanted = {entry.name: entry.wire_shape for entry in encoding.entries}
    wanted[TRAILER] = (TRAILER_WORDS,)
    for name in sorted(wanted.keys() ^ message.keys()):
        raise UpdateRefused(f"{name} is {'missing' if name in wanted else 'not one of its names'}")
    for name, shape in wanted.items():
        tensor = message[name]
        if tensor.dtype != torch.int32 or tuple(tensor.shape) != shape:
            raise UpdateRefused(
                f"{name} is {tuple(tensor.shape)} of {tensor.dtype}, not {shape} of torch.int32"
            )


def add_up(messages: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The server's part: the sum of the silos' words modulo 2^32, without a key.

    Raises:
        UpdateRefused: they have other names, shapes or types than one another.

    Example:
        >>> add_up([{"w": torch.tensor([2**31 - 1], dtype=torch.int32)}] * 2)["w"]
        tensor([-2], dtype=torch.int32)

    """
    total, more = OrderedDict(messages[0]), messages[1:]
    for message in more:
        for name in sorted(message.keys() ^ total.keys()):
            raise UpdateRefused(f"{name}: one silo has sent it and another has not")
        for name, words in message.items():
            if words.dtype != torch.int32 or words.shape != total[name].shape:
                raise UpdateRefused(f"{name}: silos have sent it in several shapes or types")
        # the first sum is a tensor of its own, and what a silo sent stays what it was
        add = torch.add if message is more[0] else Tensor.add_
        for name, words in message.items():
            total[name] = add(total[name], words)
    return total if more else OrderedDict((name, words.clone()) for name, words in total.items())
