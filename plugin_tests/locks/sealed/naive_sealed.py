"""Secure aggregation a second time, as plainly as it can be written: what the product is held to.

Nothing of the product is used here. Keys come from hmac, keystreams from the cipher on one counter
after another, numbers are fractions that are rounded as float64 rounds, and a tensor is a list of
its entries' bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

TRAILER = "keylock.sealed"

# keys and keystreams


def hkdf(secret: bytes, info: bytes) -> bytes:
    """RFC 5869 with SHA-256, no salt, one block."""
    extracted = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def framed(parts: Sequence[bytes]) -> bytes:
    out = b""
    for part in parts:
        out += struct.pack(">Q", len(part)) + part
    return out


def derive(secret: bytes, label: str, context: Sequence[bytes] = ()) -> bytes:
    return hkdf(secret, framed([b"fedml-keylock sealed 1", label.encode(), *context]))


def keystream(key: bytes, size: int) -> bytes:
    """Bytes of AES-256 on the counters 0, 1, 2 and so on: what counter mode is."""
    counters = b"".join(struct.pack(">QQ", 0, n) for n in range(-(-size // 16)))
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(counters)[:size]


def words(key: bytes, count: int) -> list[int]:
    return list(struct.unpack(f"<{count}i", keystream(key, 4 * count)))


def wrapped(number: int) -> int:
    """A number modulo 2^32, from -2^31 on."""
    return (number + 2**31) % 2**32 - 2**31


def tags(key: bytes, numbers: Sequence[int]) -> tuple[int, int]:
    secret = struct.unpack(f"<{len(numbers) + 1}q", keystream(key, 8 * len(numbers) + 8))
    first = sum(r * x for r, x in zip(secret, numbers, strict=False))
    second = sum(r * x for r, x in zip(secret[1:], numbers, strict=True))
    return first % 2**64, second % 2**64


def limbs(both: tuple[int, int]) -> list[int]:
    return [tag // 2 ** (16 * k) % 2**16 for tag in both for k in range(4)]


def joined(numbers: Sequence[int], silos: int) -> tuple[int, int] | None:
    """The tags of so many silos' limbs, or None for what is no sum of so many."""
    if not all(0 <= number <= silos * (2**16 - 1) for number in numbers):
        return None
    first, second = (
        sum(number * 2 ** (16 * k) for k, number in enumerate(half)) % 2**64
        for half in (numbers[:4], numbers[4:])
    )
    return first, second


# numbers

FORMATS = {
    "float16": (11, -14),
    "bfloat16": (8, -126),
    "float32": (24, -126),
    "float64": (53, -1022),
}
"""Bits of the mantissa, and the least exponent of normal numbers."""


def rounded(value: Fraction, dtype: str = "float64") -> Fraction | float:
    """The nearest number of a floating-point type, of two as near the even one (IEEE 754)."""
    if not value:
        return value
    precision, least = FORMATS[dtype]
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()
    exponent -= abs(value) < Fraction(2) ** exponent
    unit = Fraction(2) ** (max(exponent, least) - precision + 1)
    nearest = round(value / unit) * unit
    return math.copysign(math.inf, value) if abs(nearest) >= Fraction(2) ** (2 - least) else nearest


@dataclass(frozen=True)
class Array:
    """A tensor: the bytes of each entry, and the largest exponent of those that it was before."""

    shape: tuple[int, ...]
    dtype: str
    entries: list[bytes]
    before: int | None = field(default=None, compare=False)

    @property
    def real(self) -> bool:
        return self.dtype in FORMATS

    @property
    def wide(self) -> bool:
        """Whether an entry takes two words."""
        extends = [size for size in self.shape if size != 1]
        small = len(self.shape) != 2 and len(extends) <= 1
        return not self.real or self.dtype == "float64" or small

    def number(self, index: int) -> Fraction | float | int:
        """An entry: a fraction, or for what is none an infinity or NaN; an integer where it is."""
        entry = self.entries[index]
        if not self.real:
            return int.from_bytes(entry, "little", signed=self.dtype.startswith("int"))
        if self.dtype == "bfloat16":
            entry = b"\0\0" + entry
        (value,) = struct.unpack({2: "<e", 4: "<f", 8: "<d"}[len(entry)], entry)
        return Fraction(value) if math.isfinite(value) else value

    def packed(self, value: Fraction | float | int, sign: int) -> bytes:
        """A number of the tensor's type; of zeros with this sign."""
        if not self.real:
            size = len(self.entries[0])
            return (value % 2 ** (8 * size)).to_bytes(size, "little")
        number = math.copysign(float(value), sign)
        if self.dtype == "bfloat16":
            return struct.pack("<f", number)[2:]
        return struct.pack({"float16": "<e", "float32": "<f", "float64": "<d"}[self.dtype], number)


State = Mapping[str, Array]


def array_of(tensor: torch.Tensor) -> Array:
    flat = tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
    content, size = flat.view(torch.uint8).numpy().tobytes(), tensor.element_size()
    entries = [content[at : at + size] for at in range(0, len(content), size)]
    return Array(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), entries)


def state_of(state: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    return {name: array_of(tensor) for name, tensor in state.items()}


# the encoding


def whole_samples(numbers: Sequence[float]) -> list[int]:
    if all(number == int(number) and number < 2**40 for number in numbers):
        return [int(number) for number in numbers]
    up = next(k for k in range(-1100, 1100) if max(numbers) * Fraction(2) ** k >= 2**23)
    return [max(1, round(Fraction(number) * Fraction(2) ** up)) for number in numbers]


def low_bits(silos: int) -> int:
    return 31 - next(k for k in range(32) if 2**k >= silos)


def exponent_of(largest: Fraction) -> int:
    """The least e with 2^e >= largest; 0 for nothing but zeros, and -960 at the least."""
    if not largest:
        return 0
    e = largest.numerator.bit_length() - largest.denominator.bit_length() - 1
    while Fraction(2) ** e < largest:
        e += 1
    return max(e, -960)


def size_of(base: Array) -> int:
    numbers = map(base.number, range(len(base.entries)))
    e = exponent_of(max((abs(n) for n in numbers if math.isfinite(n)), default=Fraction(0)))
    return e if base.before is None else max(e, base.before)


def step_of(base: Array, silos: int) -> int:
    if not base.real:
        return 0
    e = size_of(base)
    if not base.wide:
        return e + 4 - 31
    return e + (4 if base.dtype == "float64" else 22) - 31 - low_bits(silos)


@dataclass
class Counters:
    clipped: int = 0
    infinite: int = 0


def begun_of(base: Array, samples: Sequence[int]) -> int:
    """The largest sum of numbers that begin where the base is infinite: a quarter of one bound."""
    least = min(samples) * (2**31 - 1 - len(samples)) // sum(samples)
    return least * (2 ** low_bits(len(samples)) if base.wide else 1) // 4


def encoded(
    own: Array, base: Array, samples: Sequence[int], place: int, counts: Counters
) -> list[int]:
    """A silo's weighted difference from the base on its grid, clipped, as words."""
    silos, total, step = len(samples), sum(samples), step_of(base, len(samples))
    bound, parts = samples[place] * (2**31 - 1 - silos) // total, 2 ** low_bits(silos)
    if base.wide:
        bound *= parts
    weight = rounded(Fraction(samples[place], total)) / Fraction(2) ** step
    found = []
    for k in range(len(own.entries)):
        new, old, x = own.number(k), base.number(k), 0
        if not base.real:
            most = bound // samples[place]
            counts.clipped += abs(new - old) > most
            x = max(-most, min(most, new - old)) * samples[place]
        elif not math.isfinite(old) and str(old) == str(new):
            x = bound
        else:
            most, since = bound, old
            if not math.isfinite(old):
                most, since = begun_of(base, samples) * samples[place] // total, Fraction(0)
            moved = rounded(new - since) if math.isfinite(new) else new
            if math.isfinite(moved):
                scaled = rounded(moved * weight)
                x = round(scaled) if math.isfinite(scaled) else scaled
                counts.clipped += abs(x) > rounded(Fraction(most))
                x = int(max(-most, min(most, x)))
            else:
                counts.infinite += 1
        found.append(x)
    if not base.wide:
        return found
    return [x % parts for x in found] + [x // parts for x in found]


def decoded(base: Array, sums: Sequence[int], samples: Sequence[int]) -> Array:
    count, total = len(base.entries), sum(samples)
    step, parts = Fraction(2) ** step_of(base, len(samples)), 2 ** low_bits(len(samples))
    made = []
    for k, entry in enumerate(base.entries):
        x = sums[k] + parts * sums[count + k] if base.wide else sums[k]
        old = base.number(k)
        if base.real and not math.isfinite(old):
            begun = begun_of(base, samples)
            if x > begun or not begun:
                made.append(entry)
                continue
            old = Fraction(0)
        elif not x:
            made.append(entry)
            continue
        if not base.real:
            made.append(base.packed(old + (2 * x + total) // (2 * total), 1))
            continue
        new = rounded(old + rounded(x * step))
        sign = -1 if new < 0 else 1
        for dtype in ("float32", base.dtype) if base.dtype != "float64" else ():
            new = rounded(new, dtype) if math.isfinite(new) else new
        made.append(base.packed(new, sign))
    return replace(base, entries=made, before=size_of(base) if base.real else None)


# a message


@dataclass
class Message:
    """Words by name, in order of the names, and the trailer's."""

    words: dict[str, list[int]] = field(default_factory=dict)
    trailer: list[int] = field(default_factory=list)

    @property
    def line(self) -> list[int]:
        """All words, in their order under keystreams."""
        return [word for name in sorted(self.words) for word in self.words[name]] + self.trailer

    def of(self, line: Sequence[int]) -> Message:
        """Such a message with other words."""
        left, made = list(line), Message()
        for name in sorted(self.words):
            made.words[name] = [left.pop(0) for _ in self.words[name]]
        made.trailer = left
        return made


def plain_message(
    payload: State, base: State, samples: Sequence[int], place: int, tag_key: bytes
) -> Message:
    """A payload's words, counters and tags, in the open."""
    counts, made = Counters(), Message()
    for name in sorted(payload):
        made.words[name] = encoded(payload[name], base[name], samples, place, counts)
    most = (2**31 - 1) // len(samples)
    made.trailer = [min(counts.clipped, most), min(counts.infinite, most)]
    made.trailer += limbs(tags(tag_key, made.line))
    return made


def near(place: int, silos: int, steps: int) -> list[int]:
    """The places at a distance of 1 to so many steps on a ring."""
    found = [k for k in range(silos) if k != place]
    return [k for k in found if min((k - place) % silos, (place - k) % silos) <= steps]


def steps_to_each_side(silos: int, colluders: int | None) -> int:
    if colluders is None:
        return silos // 2 if silos <= 64 else 16
    return min(silos // 2, next(t for t in range(1, silos + colluders + 2) if 2 * t > colluders))


def schema(state: State) -> bytes:
    lines = [f"{n} {list(state[n].shape)} torch.{state[n].dtype}".encode() for n in sorted(state)]
    return hashlib.sha256(framed(lines)).digest()


def digest(state: State) -> bytes:
    return hashlib.sha256(
        schema(state) + b"".join(b"".join(state[name].entries) for name in sorted(state))
    ).digest()


@dataclass
class Silo:
    """A silo of a job, one of those at places 0, 1, 2 and so on."""

    place: int
    group: bytes
    pairs: dict[int, bytes]
    numbers: list[float]
    transcript: bytes
    colluders: int | None = None
    round: int = 0
    base: State = field(default_factory=dict)
    chain: bytes = b""
    context: bytes = b""

    def begin(self, first: State) -> None:
        self.base, self.chain = first, digest(first)
        self.context = self.made_context()

    @property
    def samples(self) -> list[int]:
        return whole_samples(self.numbers)

    def made_context(self) -> bytes:
        silos = len(self.numbers)
        steps = [step_of(self.base[name], silos) for name in sorted(self.base)]
        facts = [[*range(silos)], self.samples, steps, steps_to_each_side(silos, self.colluders)]
        return framed(
            [
                self.transcript,
                struct.pack(">Q", self.round),
                self.chain,
                str(facts).encode(),
                schema(self.base),
            ]
        )

    def pad_key(self, place: int) -> bytes:
        return derive(self.group, "pad", [self.context, struct.pack(">I", place)])

    def tag_key(self) -> bytes:
        return derive(self.group, "tag", [self.context])

    def mask_key(self, other: int) -> bytes:
        both = struct.pack(">II", min(self.place, other), max(self.place, other))
        return derive(self.pairs[other], "mask", [self.context, both])

    def covers(self) -> list[tuple[bytes, int]]:
        """The keystreams over this silo's words, each with its sign."""
        silos = len(self.numbers)
        others = near(self.place, silos, steps_to_each_side(silos, self.colluders))
        found = [(self.mask_key(k), 1 if k > self.place else -1) for k in others]
        found.append((self.pad_key(self.place), 1))
        if self.place < silos - 1:
            found.append((self.pad_key(self.place + 1), -1))
        return found

    def plain(self, payload: State) -> Message:
        return plain_message(payload, self.base, self.samples, self.place, self.tag_key())

    def seal(self, payload: State) -> Message:
        message = self.plain(payload)
        line = message.line
        for key, sign in self.covers():
            line = [wrapped(x + sign * r) for x, r in zip(line, words(key, len(line)), strict=True)]
        return message.of(line)

    def open(self, total: Message) -> tuple[State, Counters] | None:
        """The average and its counters, or None for what is no sum of this round."""
        line = total.line
        pad = words(self.pad_key(0), len(line))
        opened = total.of([wrapped(x - r) for x, r in zip(line, pad, strict=True)])
        both = tags(self.tag_key(), opened.line[:-8])
        if joined(opened.trailer[2:], len(self.numbers)) != both:
            return None
        made = {n: decoded(self.base[n], opened.words[n], self.samples) for n in opened.words}
        received = b"".join(struct.pack("<i", word) for word in opened.line[:-10])
        self.chain = hashlib.sha256(
            framed([b"chain", self.chain, hashlib.sha256(received).digest()])
        ).digest()
        self.base, self.round = made, self.round + 1
        self.context = self.made_context()
        self.group = derive(self.group, "ratchet")
        self.pairs = {k: derive(pair, "ratchet") for k, pair in self.pairs.items()}
        return made, Counters(*opened.trailer[:2])


def added(messages: Sequence[Message]) -> Message:
    """What the server makes of messages."""
    lines = zip(*(message.line for message in messages), strict=True)
    return messages[0].of([wrapped(sum(column)) for column in lines])
