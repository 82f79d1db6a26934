"""Seals one silo's message under pairwise masks and pads, and opens the verified sum."""

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
"""The entry of a message that holds its counters and tags."""
COUNTERS = 2
"""Number of counter words: clipped entries, and entries that are NaN or infinite. Under noise: the
noised sum of votes for the clip, and 0."""
TRAILER_WORDS = COUNTERS + TAG_WORDS


@dataclass(frozen=True)
class RoundKeys:
    """The secrets of one round. Each key makes the keystream of one message only.

    Attributes:
        group: 32 bytes that all participants have.
        pairs: 32 bytes for each neighbour, by its place, that only the two have.
        place: index of this silo among the participants, from 0.
        participants: m, how many take part.
        context: what all must agree on: every key is bound to it.

    """

    group: bytes = field(repr=False)
    pairs: Mapping[int, bytes] = field(repr=False)
    place: int
    participants: int
    context: bytes

    def pad_key(self, place: int) -> bytes:
        """The key of pad S_l; the pads of all participants add up to S_0."""
        return derive(self.group, "pad", self.context, place.to_bytes(4, "big"))

    def mask_key(self, neighbour: int) -> bytes:
        """The key of a pairwise mask, which the lower neighbour adds and the higher subtracts."""
        low, high = sorted((self.place, neighbour))
        places = low.to_bytes(4, "big") + high.to_bytes(4, "big")
        return derive(self.pairs[neighbour], "mask", self.context, places)

    def tag_key(self) -> bytes:
        """The key of the round's tag, the same for all participants."""
        return derive(self.group, "tag", self.context)

    def covers(self) -> list[tuple[bytes, int]]:
        """The key and sign of every keystream that covers this silo's words."""
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
    """Seal a payload: int32 words under the payload's own names, and TRAILER.

    Args:
        encoding: of the round.
        payload: name to tensor, with the names and shapes of the encoding's base.
        keys: of the round; never use them for a second message.
        release: in a round under noise; only what it gives is sent of the payload.

    Raises:
        LockError: the release exceeds its clip.

    Returns:
        The message, and the counts of clipped entries.

    """
    tag, counts, noise = Tag(keys.tag_key()), Counts(), Noise()
    streams = [(Keystream(key), sign) for key, sign in keys.covers()]

    def cover(words: NDArray[np.int32], into: NDArray[np.int32]) -> None:
        into[:] = words
        for stream, sign in streams:
            secret = stream.words(len(words))
            (np.add if sign > 0 else np.subtract)(into, secret, out=into)

    # FedML takes a plain dict for the state of one silo
    sealed: dict[str, Tensor] = OrderedDict()
    for entry, step in zip(encoding.entries, encoding.steps, strict=True):
        wire = torch.empty(entry.wire_shape, dtype=torch.int32)
        flat, start = wire.view(-1).numpy(), 0
        if release is None:
            in_chunks = encoding.encode(entry, step, payload[entry.name], keys.place, counts)
        elif entry.name in release.grids:
            grid = release.grids[entry.name]
            in_chunks = (
                release.sent(entry, noise.over(words, grid)) for words in release.words(entry)
            )
        else:  # the base, unchanged
            unchanged = encoding.base[entry.name]
            in_chunks = encoding.encode(entry, step, unchanged, keys.place, counts)
        for words in in_chunks:
            tag.update(words)
            cover(words, flat[start : start + len(words)])
            start += len(words)
        sealed[entry.name] = wire
    most = (2**31 - 1) // keys.participants
    counters = np.array([min(counts.clipped, most), min(counts.infinite, most)], dtype=np.int32)
    if release is not None:  # no counts: they would reveal something of one silo's numbers
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
    """A verified sum.

    Attributes:
        state: the average, name to tensor, in the order of the base: some jobs load by position.
        counts: of all participants together; 0 under noise.
        votes: under noise, the first counter.
        digest: SHA-256 of the opened words. Not of the tags: every silo has their key, and could
            make other words with the same tags.

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
        UpdateRefused: it is not the sum of this round's messages, one of each participant.

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
            "the average is not the sum of what the silos sent in this round, with each of them "
            "once: the server, or somebody on the network, has changed it; nothing was loaded"
        )
    ordered = OrderedDict((name, state[name]) for name in encoding.base)
    if encoding.noised:
        return Opened(ordered, Counts(), digest.digest(), votes=int(trailer[0]))
    return Opened(ordered, Counts(int(trailer[0]), int(trailer[1])), digest.digest())


def check_form(encoding: Encoding, message: Mapping[str, Tensor]) -> None:
    """Check names, shapes and types of a sealed message.

    Raises:
        UpdateRefused: naming the first entry that does not fit.

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
    """The server's part: add up the silos' words modulo 2^32, without keys.

    Raises:
        UpdateRefused: the messages differ in names, shapes or types.

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
        # the first addition makes a new tensor, so that the silo's message stays unchanged
        add = torch.add if message is more[0] else Tensor.add_
        for name, words in message.items():
            total[name] = add(total[name], words)
    return total if more else OrderedDict((name, words.clone()) for name, words in total.items())
