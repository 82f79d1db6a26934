"""Messages from silo to silo over MPI, past the server."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import HostError
from ..types import Exchange

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["TAG", "Mailbox", "exchange_among", "misfit"]

TAG = 28_411
"""Of every message here: FedML's own have 0, and every MPI allows tags up to 32767."""
PAUSE = 0.001
"""Seconds between two looks: MPI's own waiting takes a whole core."""


class Mailbox:
    """Messages to and from other ranks, which never waits in a call that only they could end.

    Args:
        comm: a communicator.
        ranks: what errors call its ranks; None for what it calls them.

    """

    def __init__(self, comm: MPI.Intracomm, ranks: Sequence[int] | None = None) -> None:
        self._comm = comm
        self._ranks = range(comm.Get_size()) if ranks is None else ranks

    def exchange(
        self,
        messages: Mapping[int, bytes],
        senders: Collection[int],
        length: int,
        *,
        wait: float | None,
        meanwhile: Callable[[], None] | None = None,
    ) -> dict[int, bytes]:
        """Send each rank its message, and receive one of so many bytes from each sender.

        It checks a message's length before it receives it.

        Args:
            messages: by rank.
            senders: ranks to receive from.
            length: bytes of what they send.
            wait: seconds; None to wait as long as they take.
            meanwhile: what this rank does between sending and receiving.

        Raises:
            HostError: a rank did not receive or send its message in time, or sent another length.

        """
        from mpi4py import MPI

        end = None if wait is None else time.monotonic() + wait
        received: dict[int, bytes] = {}
        status = MPI.Status()
        sending = {
            rank: self._comm.Isend(bytearray(message), dest=rank, tag=TAG)
            for rank, message in messages.items()
        }
        if meanwhile is not None:
            meanwhile()

        def done(rank: int) -> bool:
            if rank in senders and rank not in received:
                if not self._comm.Iprobe(source=rank, tag=TAG, status=status):
                    return False
                size = status.Get_count(MPI.BYTE)
                if size != length:
                    raise misfit(self._ranks[rank], f"sent {size} bytes, not {length}")
                buffer = bytearray(length)
                self._comm.Recv(buffer, source=rank, tag=TAG)
                received[rank] = bytes(buffer)
            return rank not in sending or bool(sending[rank].Test())

        left = sorted({*messages, *senders})
        while left := [rank for rank in left if not done(rank)]:
            if end is not None and time.monotonic() >= end:
                named = ", ".join(str(self._ranks[rank]) for rank in left)
                raise HostError(
                    f"the silos share no secret: rank{'s'[: len(left) != 1]} {named} did not "
                    f"answer within {wait:g} seconds. Start every rank with `python -m "
                    "fedml_keylock` and the same YAML"
                )
            time.sleep(PAUSE)
        return received


def exchange_among(comm: MPI.Intracomm, silos: Sequence[int]) -> Exchange:
    """A way from each silo to the others that FedML's receiver does not look into.

    Args:
        comm: the communicator of all ranks.
        silos: their ranks in it; a silo's index is its place among them.

    """
    group = comm.Get_group().Incl(silos)
    # only the silos take part in making it, and messages in it are no messages of FedML's
    mailbox = Mailbox(comm.Create_group(group, TAG), silos)

    def exchange(
        messages: Mapping[int, bytes], meanwhile: Callable[[], None]
    ) -> Mapping[int, bytes]:
        length = len(next(iter(messages.values()), b""))
        return mailbox.exchange(messages, [*messages], length, wait=None, meanwhile=meanwhile)

    return exchange


def misfit(rank: int, what: str) -> HostError:
    """The error of a rank that speaks another protocol."""
    return HostError(
        f"the silos do not understand one another: rank {rank} {what}. Run the same fedml-keylock "
        "on every rank, with the same YAML"
    )
