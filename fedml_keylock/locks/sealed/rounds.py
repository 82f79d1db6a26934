"""Runs one silo's part in a sealed job: each round it seals once and opens once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...errors import HostError, UpdateRefused
from ...tensors import raw
from ...types import JobSecrets
from ..private import Private
from .encoding import Counts, Encoding, exponent_of, size_of
from .entries import entries_of
from .keystream import derive, framed
from .neighbours import neighbours, reach
from .noise import Release
from .notices import Notice, compare
from .record import Record
from .sealing import TRAILER, Opened, RoundKeys, seal
from .shares import Shares

__all__ = ["Rounds", "digest_of"]

Message = tuple[dict[str, Tensor], Counts]


@dataclass
class Rounds(Private):
    """One silo's secrets, its last received payload, and its round.

    A round has one order: `seal` once, then `open` once. Anything else is refused, so that no
    keystream covers two messages.

    Attributes:
        secrets: what the silos have agreed on.
        colluders: how many silos may collude with the server; None if not declared.
        scale: the largest number in tensors that are new to all silos; None to refuse these.
        keep_own: whether to keep the keys that open this silo's own messages, for audits.
        round: index of the round, from 0.
        base: the last received and opened tensor of each name.
        record: of the last sealed round.

    """

    secrets: JobSecrets = field(repr=False)
    colluders: int | None = None
    scale: float | None = None
    keep_own: bool = False
    round: int = 0
    base: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    record: Record | None = field(default=None, repr=False)
    _chain: bytes = field(default=b"", repr=False)
    _came: tuple[int, ...] = ()
    _sealed: bool = False
    _used: bool = False
    _sizes: dict[str, int] = field(default_factory=dict)
    _numbers: list[float] = field(default_factory=list)

    def begin(self, first: Mapping[str, Tensor]) -> bytes:
        """Accept the first model, and bind every key to it.

        The same model may arrive again until a message is sealed. Later it could pass for an
        average.

        Returns:
            The model's digest, 32 bytes.

        Raises:
            UpdateRefused: the job began with another model, or a message was sealed.

        """
        digest = digest_of(first)
        if not self._chain:
            self.base, self._chain = _kept(first), digest
        elif self._used or digest != self._chain:  # the chain changes with every round
            raise UpdateRefused(
                f"round {self.round}: the server sent a model that is no average of the silos'"
            )
        return digest

    @property
    def begun(self) -> bool:
        """Whether the first model has arrived."""
        return bool(self._chain)

    def told(self, samples: float) -> list[float]:
        """Tell the other silos this silo's number of samples before a round is trained.

        Returns:
            The samples of all silos in the round; in a simulation, those of all silos of the job.

        Raises:
            UpdateRefused: naming the silo whose view differs.

        """
        if not self.begun:  # a simulation in one process receives nothing
            return [samples, *self.secrets.samples.values()]
        own = Notice(self.round, self._chain, schema_of(self.base), samples)
        self._numbers = compare(own, self.secrets, label="examples")
        return self._numbers

    def seal(
        self,
        payload: Mapping[str, Tensor],
        *,
        samples: float = 1.0,
        release: Callable[[Mapping[str, Tensor]], Release] | None = None,
    ) -> Message:
        """Seal a payload for this round.

        Args:
            payload: name to tensor: a whole state, or any part of one.
            samples: this silo's weight in the average.
            release: under noise, makes what is sent from the base of the difference.

        Returns:
            The message, and the counts of clipped entries.

        Raises:
            UpdateRefused: this round has a sealed message already, or the silos do not agree.

        """
        if not self._chain:
            raise HostError("a message was to be sealed before the first model arrived")
        if self._used:
            raise UpdateRefused(
                f"round {self.round}: it would send a second message in one round, whose "
                "difference from the first is not hidden: send one"
            )
        base = self._base_of(payload, sized=release is None)
        released = None if release is None else release(base)
        self._used = True  # even after an error: no second notice, and no second message
        schema, sending = schema_of(base), "sends other names, shapes or types"
        if released is not None:
            schema = hashlib.sha256(schema + json.dumps([*released.public]).encode()).digest()
            sending += ", or has another clip or learning rate,"
        own = Notice(self.round, self._chain, schema, samples)
        sizes = self._grown(base)

        def made(numbers: Sequence[float]) -> tuple[Encoding, RoundKeys, Message]:
            shares = Shares.of(numbers)
            if released is None:
                encoding = Encoding.of(base, shares, sizes)
                keys = self._keys(encoding)
            else:
                encoding = released.encoding(base, shares, sizes)
                keys = self._keys(encoding, encoding.scale, *released.public)
            return encoding, keys, seal(encoding, payload, keys, released)

        early = []

        def meanwhile() -> None:
            # if the numbers differ, so do the keys, and this message is thrown away
            if self._numbers:
                early.append(made(self._numbers))

        before = self._numbers
        self._numbers = compare(own, self.secrets, sending=sending, meanwhile=meanwhile)
        same = early and before == self._numbers
        encoding, keys, message = early[0] if same else made(self._numbers)
        self.record = Record.of(encoding, keys, self.round, own=self.keep_own, came=self._came)
        self._sealed = True
        return message

    def open(self, message: Mapping[str, Tensor]) -> Opened:
        """Verify the sum of the silos' messages, and use it as the next base.

        Raises:
            UpdateRefused: it is not the sum of this round's messages; nothing has changed.

        """
        if not self._sealed or self.record is None:
            raise UpdateRefused(
                f"round {self.round}: the server sent an average before this silo sent its update"
            )
        try:
            opened = self.record.open(message)
        except UpdateRefused as error:
            raise UpdateRefused(f"round {self.round}: {error}") from None
        # digest of the first model and all words since: equal chains mean equal receipts
        self._chain = hashlib.sha256(framed(b"chain", self._chain, opened.digest)).digest()
        self.base, self.round = {**self.base, **_kept(opened.state)}, self.round + 1
        self._came = tuple(message[TRAILER].tolist())
        self._sealed = self._used = False
        self.secrets = ratcheted(self.secrets)
        return opened

    def agreed(self) -> None:
        """Check, after the last round, that all silos have opened the same model.

        Without a channel past the server there is nothing to compare.

        Raises:
            UpdateRefused: naming the silo that differs.

        """
        samples = self.secrets.samples.get(self.secrets.silo, 1.0)
        own = Notice(self.round, self._chain, schema_of(self.base), samples)
        compare(own, self.secrets, label="farewell")

    def _base_of(self, payload: Mapping[str, Tensor], *, sized: bool) -> Mapping[str, Tensor]:
        """The received tensors for the names of a payload; zeros for new names.

        With `sized`, the size of their numbers must be known; otherwise a clip sets it.
        """
        base: dict[str, Tensor] = {}
        for name, tensor in payload.items():
            known = self.base.get(name)
            if known is not None and known.shape == tensor.shape and known.dtype == tensor.dtype:
                base[name] = known
                continue
            if not (tensor.is_floating_point() or tensor.is_complex()):
                raise UpdateRefused(
                    f"{name} is {tensor.dtype}, which the server has not sent: the average of it "
                    "would be rounded; send it as floating point"
                )
            if self.scale is None and sized:
                what = "the server has not sent"
                if known is not None and known.shape != tensor.shape:
                    raise UpdateRefused(
                        f"{name}: is {tuple(tensor.shape)}, and the server has sent it as "
                        f"{tuple(known.shape)}: send it in that shape, or under a name of its own; "
                        "where a first batch sets it, run the model once before FedML gets it"
                    )
                if known is not None:
                    what = f"is {tensor.dtype} and was sent by the server as {known.dtype}"
                raise UpdateRefused(
                    f"{name}: {what}, so that nothing says how large its numbers are: declare it "
                    "by keylock: {scale: LARGEST}"
                )
            base[name] = tensor.detach().new_zeros(tensor.shape)
        return base

    def _grown(self, base: Mapping[str, Tensor]) -> dict[str, int]:
        """For each name, the exponent of the largest number that its base has had so far.

        The average of gradients may be near zero in a round in which no silo's own is.
        """
        for name, tensor in base.items():
            if tensor.is_floating_point() or tensor.is_complex():
                known = tensor is self.base.get(name)
                size = size_of(tensor) if known else exponent_of(self.scale or 0.0)
                self._sizes[name] = max(size, self._sizes.get(name, size))
        return self._sizes

    def _keys(self, encoding: Encoding, *noise: float) -> RoundKeys:
        silos = sorted({self.secrets.silo, *self.secrets.pairs})
        place, steps = silos.index(self.secrets.silo), reach(len(silos), self.colluders)
        near = neighbours(place, len(silos), steps)
        context = framed(
            self.secrets.transcript,
            self.round.to_bytes(8, "big"),
            self._chain,
            json.dumps([silos, encoding.shares.samples, encoding.steps, steps, *noise]).encode(),
            schema_of(encoding.base),
        )
        pairs = {other: self.secrets.pairs[silos[other]] for other in near}
        return RoundKeys(self.secrets.group, pairs, place, len(silos), context)


def digest_of(state: Mapping[str, Tensor]) -> bytes:
    """SHA-256 of names, shapes, types and numbers.

    Example:
        >>> import torch
        >>> digest_of({"w": torch.zeros(2)}) == digest_of({"w": torch.zeros(2)})
        True

    """
    found = hashlib.sha256(schema_of(state))
    for name in sorted(state):
        found.update(raw(state[name]))
    return found.digest()


def schema_of(state: Mapping[str, Tensor]) -> bytes:
    """One digest, 32 bytes, of names, shapes and types.

    Example:
        >>> import torch
        >>> schema_of({"w": torch.zeros(2)}) == schema_of({"w": torch.zeros(3)})
        False

    """
    return hashlib.sha256(framed(*_lines(state))).digest()


def _lines(state: Mapping[str, Tensor]) -> list[bytes]:
    return [f"{e.name} {list(e.shape)} {e.dtype}".encode() for e in entries_of(state)]


def _kept(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of a state's tensors: a job may train in place what it received."""
    return {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }


def ratcheted(secrets: JobSecrets) -> JobSecrets:
    """The next round's secrets; earlier ones cannot be derived from them."""
    pairs = {silo: derive(secret, "ratchet") for silo, secret in secrets.pairs.items()}
    return replace(secrets, group=derive(secrets.group, "ratchet"), pairs=pairs)
