"""Encodes updates as integers: fixed point, of the difference from the last global model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...tensors import real
from .entries import Entry, entries_of
from .shares import Shares

__all__ = ["CHUNK", "Counts", "Encoding", "chunks", "exponent_of", "size_of"]

CHUNK = 1 << 18
"""Words processed at once: few enough for the processor's cache."""
HEADROOM = 4
"""Bits: a matrix may grow to 2^4 times its largest number in a round before entries clip."""
HEADROOM_VECTOR = 22
"""The same for vectors and scalars, which take two words an entry."""
LEAST = -960
"""The smallest exponent of a tensor's size: smaller steps would leave float64's range."""


@dataclass
class Counts:
    """Counts entries that did not fit their range while a payload was encoded.

    Attributes:
        clipped: entries that grew beyond the range of their tensor in a round.
        infinite: entries that are NaN or infinite.
        names: tensors with such entries, for the silo's own log.

    """

    clipped: int = 0
    infinite: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, name: str, clipped: int, infinite: int) -> None:
        """Add the counts of some entries of a tensor."""
        self.clipped += clipped
        self.infinite += infinite
        if (clipped or infinite) and name not in self.names:
            self.names.append(name)


@dataclass(frozen=True)
class Encoding:
    """A fixed-point grid that all silos derive from the payload that they received.

    Attributes:
        base: the received and opened payload, name to tensor; only differences from it are encoded.
        entries: of the base.
        steps: for each entry, the exponent e of its step 2^e; 0 for integers.
        shares: of the participants.
        scale: factor in the average for sums of noised words times their step.

    """

    base: Mapping[str, Tensor] = field(repr=False)
    entries: tuple[Entry, ...]
    steps: tuple[int, ...]
    shares: Shares
    scale: float = 1.0

    @classmethod
    def of(
        cls,
        base: Mapping[str, Tensor],
        shares: Shares,
        sizes: Mapping[str, int] | None = None,
        noised: Mapping[str, int] | None = None,
        scale: float = 1.0,
    ) -> Encoding:
        """The encoding of differences from a base.

        A step is set by the largest number of its tensor, rounded up to a power of two, which is
        the same on every machine. For a tensor of zeros that number counts as 1.

        Args:
            base: the received payload.
            shares: of the participants.
            sizes: the exponents that set the steps, by name; None for those of the base.
            noised: the exponents of the steps of noised tensors, by name.
            scale: see the attribute.

        Raises:
            UpdateRefused: a tensor's type cannot be added up.

        Example:
            >>> base = {"w": torch.full((2, 2), 0.7)}
            >>> encoding = Encoding.of(base, Shares((1, 1)))
            >>> encoding.steps
            (-27,)

        """
        given, exact = sizes or {}, noised or {}
        entries = tuple(
            replace(entry, kind="noised") if entry.name in exact else entry
            for entry in entries_of(base)
        )
        bits = {
            "matrix": HEADROOM - 31,
            "vector": HEADROOM_VECTOR - 31 - shares.low_bits,
            "double": HEADROOM - 31 - shares.low_bits,
        }

        def step(entry: Entry) -> int:
            if entry.kind == "integer":
                return 0
            if entry.kind == "noised":
                return exact[entry.name]
            size = given[entry.name] if entry.name in given else size_of(base[entry.name])
            return bits[entry.kind] + size

        return cls(base, entries, tuple(map(step, entries)), shares, scale)

    @property
    def noised(self) -> bool:
        """Whether any tensor is noised."""
        return any(entry.kind == "noised" for entry in self.entries)

    @property
    def words(self) -> int:
        """How many words a payload has."""
        return sum(math.prod(entry.wire_shape) for entry in self.entries)

    def encode(
        self, entry: Entry, step: int, payload: Tensor, place: int, counts: Counts
    ) -> Iterator[NDArray[np.int32]]:
        """Yield the words of one tensor, in their order on the wire, in chunks.

        Args:
            entry: of the tensor.
            step: the exponent of its step.
            payload: the tensor, of the entry's shape and type.
            place: index of the silo among the participants.
            counts: collects what is clipped.

        """
        own = real(payload).cpu().reshape(-1)
        base = real(self.base[entry.name]).cpu().reshape(-1)
        starts = range(0, entry.numel, CHUNK)
        if entry.kind == "matrix":
            for start in starts:
                part = slice(start, start + CHUNK)
                yield self._rounded(entry, step, own[part], base[part], place, counts).numpy()
            return
        wide = [
            (self._integers if entry.kind == "integer" else self._rounded)(
                entry, step, own[start : start + CHUNK], base[start : start + CHUNK], place, counts
            )
            for start in starts
        ]
        low = self.shares.low_bits
        yield from ((words & (2**low - 1)).to(torch.int32).numpy() for words in wide)
        yield from ((words >> low).to(torch.int32).numpy() for words in wide)

    def decode(
        self,
        entry: Entry,
        step: int,
        in_chunks: Iterable[NDArray[np.int32]],
        *,
        share: float = 1.0,
    ) -> Tensor:
        """Decode a tensor's average from the sums of its words.

        It has the base's device and type. Where all silos sent the base, it equals the base bit for
        bit.

        Args:
            entry: of the tensor.
            step: the exponent of its step.
            in_chunks: the words, in their order on the wire, in chunks.
            share: for the words of one silo, n / n_i, the inverse of its share of the average.

        """
        base = self.base[entry.name]
        flat = real(base).cpu().reshape(-1)
        made = torch.empty_like(flat)
        rows: Iterable[tuple[NDArray[np.int32], NDArray[np.int32]]]
        if entry.kind in ("matrix", "noised"):
            rows = ((words, words[:0]) for words in in_chunks)
        else:
            wide = np.concatenate([np.empty(0, np.int32), *in_chunks])
            rows = zip(chunks(wide[: entry.numel]), chunks(wide[entry.numel :]), strict=True)
        start = 0
        for low, high in rows:
            part = slice(start, start + len(low))
            made[part] = self._averaged(entry, step, flat[part], low, high, share)
            start = part.stop
        whole = made.reshape(entry.shape).to(base.device)
        return torch.view_as_complex(whole) if entry.complex else whole

    def _averaged(
        self,
        entry: Entry,
        step: int,
        base: Tensor,
        low: NDArray[np.int32],
        high: NDArray[np.int32],
        share: float,
    ) -> Tensor:
        """Some entries of a base, moved by their words; a matrix has no high words."""
        if entry.kind == "integer":
            sums = torch.from_numpy(low.astype(np.int64))
            sums += torch.from_numpy(high.astype(np.int64)) << self.shares.low_bits
            total = round(self.shares.total / share)
            mean = torch.div(2 * sums + total, 2 * total, rounding_mode="floor")
            return (base.to(torch.int64) + mean).to(entry.dtype)
        moved = torch.from_numpy(low.astype(np.float64))
        if entry.kind == "noised":
            moved *= self.scale * share * 2.0**step
            moved += base
            return torch.where(torch.isfinite(base), moved.to(entry.dtype), base)
        moved *= 2.0**step
        still = torch.from_numpy(low == 0)
        if entry.kind != "matrix":
            above = torch.from_numpy(high.astype(np.float64))
            moved += above * 2.0 ** (step + self.shares.low_bits)
            still = moved == 0
        since = base
        # a sum is the cheapest test; a sum of finite numbers may overflow, which only costs time
        if not math.isfinite(float(base.sum())):
            odd, begun = ~torch.isfinite(base), self._begun(entry)
            since = torch.where(odd, 0.0, base)
            # a bound of 0 leaves no room for numbers to begin: the base stays
            still = torch.where(odd, (moved > begun * 2.0**step) | (begun == 0), still)
        if share != 1:
            moved *= share
        moved += since
        new = moved.to(entry.dtype)
        if still.any():  # -0.0 + 0.0 is 0.0, and a NaN may change its bits through float64
            new = torch.where(still, base, new)
        return new

    def _begun(self, entry: Entry) -> int:
        """The largest sum for entries that start to be finite where the base is not.

        A silo that keeps the base's non-finite value sends its bound, at least four times as much.
        So a larger sum means that one of them does, and FedML's average is not finite there either.
        """
        least = min(map(self.shares.bound, range(len(self.shares.samples))))
        return (least if entry.kind == "matrix" else least << self.shares.low_bits) // 4

    def _rounded(
        self, entry: Entry, step: int, own: Tensor, base: Tensor, place: int, counts: Counts
    ) -> Tensor:
        """``n_i (own - base) / (n 2^step)``, rounded to the nearest even, and clipped."""
        moved = own.to(torch.float64, copy=True)  # the payload is the silo's own model
        moved -= base.double()
        infinite, largest, odd = 0, _largest(moved), None
        if not math.isfinite(largest):
            # a value that is not finite, such as in a causal mask, is kept, or else starts from 0
            odd = ~torch.isfinite(base)
            kept = odd & ((own == base) | (own.isnan() & base.isnan()))
            moved = torch.where(odd, own.double(), moved)
            lost = ~torch.isfinite(moved)
            infinite = int((lost & ~kept).sum())
            moved[lost] = 0.0
            largest = _largest(moved)
        factor = self.shares.samples[place] / self.shares.total * 2.0**-step
        moved *= factor
        moved.round_()
        bound, wide = self.shares.bound(place), entry.kind != "matrix"
        if wide:
            bound <<= self.shares.low_bits
        clipped = 0
        if odd is not None or largest * factor > bound:
            limit = torch.full_like(moved, bound)
            if odd is not None:
                limit[odd] = self._begun(entry) * self.shares.samples[place] // self.shares.total
            clipped = int((moved.abs() > limit).sum())
            moved.clamp_(-limit, limit)
            if odd is not None:
                moved[kept] = bound
        counts.add(entry.name, clipped, infinite)
        if not wide:
            return moved.to(torch.int32)
        # float64 may round the bound of two words up: clip the integers once more
        return moved.to(torch.int64).clamp_(-bound, bound)

    def _integers(
        self, entry: Entry, _step: int, own: Tensor, base: Tensor, place: int, counts: Counts
    ) -> Tensor:
        """``n_i (own - base)``, clipped."""
        moved = own.to(torch.int64) - base.to(torch.int64)
        samples = self.shares.samples[place]
        bound = (self.shares.bound(place) << self.shares.low_bits) // samples
        clipped = int((moved.abs() > bound).sum())
        counts.add(entry.name, clipped, 0)
        return moved.clamp_(-bound, bound) * samples


def chunks(words: NDArray[np.int32]) -> Iterator[NDArray[np.int32]]:
    """Split words into chunks of CHUNK."""
    return (words[start : start + CHUNK] for start in range(0, len(words), CHUNK))


def size_of(tensor: Tensor) -> int:
    """The exponent of a tensor's largest finite number, rounded up to a power of two."""
    flat = real(tensor).reshape(-1)
    size = _largest(flat)
    return exponent_of(size if math.isfinite(size) else _largest(flat[torch.isfinite(flat)]))


def _largest(flat: Tensor) -> float:
    """The largest magnitude in a vector, in one pass; NaN or infinite if an entry is.

    Example:
        >>> _largest(torch.tensor([1.0, -3.0])), _largest(torch.tensor([1.0, math.nan]))
        (3.0, nan)

    """
    if not len(flat):
        return 0.0
    least, most = torch.aminmax(flat)
    return max(-float(least), float(most))


def exponent_of(size: float) -> int:
    """The smallest e >= LEAST with ``2^e >= size``; 0 for a size of 0."""
    mantissa, exponent = math.frexp(size)
    return max(exponent - (mantissa == 0.5), LEAST)
