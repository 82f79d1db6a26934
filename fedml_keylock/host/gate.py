"""Decides what may leave a silo, and what server and silos accept.

A session calls its gate once for each message: `admit` checks an incoming one; `emit` checks an
outgoing one and prepares it in place. Each raises UpdateRefused before the message goes on.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..errors import UpdateRefused
from ..types import Agreement
from .public_state import check_payload, check_state, check_words, pinned, public_copy
from .update_history import Sender, UpdateHistory, check_attackable

__all__ = [
    "HELLO",
    "HELLOS",
    "JOB_NONCE",
    "MARK",
    "EntryNames",
    "ServerGate",
    "SiloGate",
    "check_hellos",
    "check_mark",
    "check_nonce",
    "check_samples",
]

MARK = "keylock"
"""Name of a silo's message entry with the mark of its agreement."""

HELLO = "keylock_hello"
"""Name of the entry with a silo's hello, where silos reach one another only by the server."""

HELLOS = "keylock_hellos"
"""Name of the entry, beside the first model, with all silos' hellos."""

JOB_NONCE = "keylock_job_nonce"
"""Name of the entry, beside the server's model, with the job nonce."""


@dataclass(frozen=True)
class EntryNames:
    """FedML's names for the entries of its messages.

    Attributes:
        state: a model's state.
        samples: how many samples the silo has.
        silo: index of the silo that the receiver works for.

    """

    state: str
    samples: str
    silo: str


@dataclass
class ServerGate:
    """The server's gate.

    Attributes:
        nonce: of the job, in hexadecimal.
        reads_states: whether attacks read updates, which must then be whole states.
        history: of the job's messages.

    """

    nonce: str = field(default_factory=lambda: os.urandom(16).hex())
    reads_states: bool = False
    history: UpdateHistory = field(default_factory=UpdateHistory)

    def admit(
        self,
        entries: Mapping[str, Any],
        names: EntryNames,
        agreement: Agreement | None,
        sender: Sender,
        before: Mapping[str, Tensor] | None,
    ) -> tuple[Mapping[str, Tensor], float] | None:
        """Check a silo's message: its mark, and its update against those of others and its last.

        Args:
            entries: of the message.
            names: of entries.
            agreement: what the update must match; None without a defense.
            sender: of the message.
            before: a copy of the state last sent to silos, if any.

        Returns:
            The update and its samples, if the message has them.

        """
        who, update, samples = sender.who, entries.get(names.state), entries.get(names.samples, 1)
        if agreement is not None:
            check_mark(entries.get(MARK), agreement, who=who)
        if update is None:
            return None
        if agreement is not None:
            if agreement.sealed:
                check_words(update, who=who)
            else:
                check_state(update, agreement, who=who, partial=True)
            samples = check_samples(entries.get(names.samples), who=f"{who}: {names.samples}")
            self.history.add(update, sender)
        if self.reads_states:
            check_attackable(update, before or {}, who=who)
        return update, float(samples)

    def emit(
        self,
        entries: dict[str, Any],
        names: EntryNames,
        agreement: Agreement | None,
        receiver: int | None,
        *,
        is_sum: bool,
    ) -> None:
        """Prepare the server's model for a rank, or for all (None): constants and job nonce.

        A first model may have other constants than agreed, and noise and attacks change them. They
        carry no information, so resetting them loses nothing. Silos refuse a model with others. A
        sum of sealed words stays as it is.

        Raises:
            UpdateRefused: the model is not tensors by name.

        """
        state = entries.get(names.state)
        if agreement is None or state is None:
            return
        check_payload(state, who="the server's model")
        if isinstance(state, MutableMapping) and not is_sum:
            state.update(pinned(state, agreement))
        self.history.sending(receiver, state)
        entries[JOB_NONCE] = self.nonce


@dataclass(frozen=True)
class SiloGate:
    """A silo's gate.

    Attributes:
        release: returns what the defense sends in place of a checked state with so many samples.

    """

    release: Callable[[Mapping[str, Tensor], float], Mapping[str, Tensor]] = field(repr=False)

    def admit(
        self, entries: Mapping[str, Any], names: EntryNames, agreement: Agreement, *, who: str
    ) -> tuple[Mapping[str, Tensor], bytes]:
        """Check a message with the server's model; return its state and the job nonce."""
        state = entries.get(names.state)
        if agreement.sealed:  # sealed words are checked when they are opened
            state = check_payload(state, who=who)
        else:
            state = check_state(state, agreement, who=who, averaged=True, partial=True)
        return state, check_nonce(entries.get(JOB_NONCE), who=who)

    def emit(
        self, entries: dict[str, Any], names: EntryNames, agreement: Agreement, *, who: str
    ) -> Mapping[str, Tensor] | None:
        """Let only agreed public state and numbers out; return the state, if any."""
        for name, value in entries.items():
            if name != names.state and not isinstance(value, (str, int, float, type(None))):
                # as a number: a tensor would carry all the memory that it is a view of
                entries[name] = check_samples(value, who=f"{who}: message entry {name}")
        state = entries.get(names.state)
        if state is not None:
            if agreement.sealed:  # the state itself does not leave the silo
                checked = check_payload(state, who=who)
            else:
                checked = check_state(state, agreement, who=who, partial=True)
            released = self.release(checked, float(entries.get(names.samples, 1)))
            state = entries[names.state] = public_copy(released)
        entries[MARK] = agreement.mark
        return state


def check_hellos(entry: Any, *, silos: int, who: str) -> dict[int, bytes]:
    r"""Check the silos' hellos, which the server passed on, and return them by rank.

    Raises:
        UpdateRefused: there are none, or not one from each silo that takes part.

    Example:
        >>> check_hellos("1:ab,2:cd", silos=2, who="silo 0")
        {1: b'\xab', 2: b'\xcd'}

    """
    try:
        pairs = (said.split(":") for said in str(entry).split(","))
        hellos = {int(rank): bytes.fromhex(hello) for rank, hello in pairs}
    except ValueError:
        raise UpdateRefused(
            f"{who} arrived without the silos' hellos: the plugin is not active on the server. "
            "Start every rank with `python -m fedml_keylock` and the same YAML"
        ) from None
    if len(hellos) != silos:  # with two silos, one colluding, the sum reveals the other's
        raise UpdateRefused(
            f"{who} arrived with the hellos of {len(hellos)} silos, and {silos} take part: the "
            "server has left some out, or its client_num_per_round is another"
        )
    return hellos


def check_mark(mark: Any, agreement: Agreement, *, who: str) -> None:
    """Check that another rank works under the same agreement.

    Raises:
        UpdateRefused: naming what differs, or that the mark is missing.

    """
    if mark is None:
        raise UpdateRefused(
            f"{who}: its messages are not locked: the plugin is not active there, or the flag is "
            "off. Start every rank with `python -m fedml_keylock` and the same YAML"
        )
    if not isinstance(mark, str) or mark != agreement.mark:
        part = agreement.difference(mark if isinstance(mark, str) else "")
        hint = "; state that only one silo has belongs in its trainer" if part == "model" else ""
        raise UpdateRefused(
            f"{who}: its {part} differ from the server's; use the same YAML and code{hint}"
        )


def check_nonce(nonce: Any, *, who: str) -> bytes:
    """Check a job nonce, 16 bytes in hexadecimal, and return it.

    Raises:
        UpdateRefused: it is missing or something else.

    Example:
        >>> check_nonce("41" * 16, who="silo 0")
        b'AAAAAAAAAAAAAAAA'

    """
    if not isinstance(nonce, str) or not re.fullmatch("[0-9a-f]{32}", nonce):
        raise UpdateRefused(
            f"{who} arrived without the job nonce: the plugin is not active on the server. Start "
            "every rank with `python -m fedml_keylock` and the same YAML"
        )
    return bytes.fromhex(nonce)


def check_samples(samples: Any, *, who: str) -> float:
    """Check a number that a silo sends, such as its weight in the average, and return it.

    Raises:
        UpdateRefused: it is not one positive, finite number. The error does not show the value,
            which may be private.

    Example:
        >>> check_samples(3, who="silo 0")
        3.0

    """
    try:
        number = float(samples)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if isinstance(samples, (str, bytes)) or not math.isfinite(number) or number <= 0:
        kind = type(samples).__name__
        raise UpdateRefused(f"{who} is a {kind}, not a positive number")
    return number
