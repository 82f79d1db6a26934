"""Sends messages from silo to silo over MPI, past the server."""

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
"""Tag of every message here: FedML's own have 0, and every MPI allows tags up to 32767."""
PAUSE = 0.001
"""Seconds between two polls: MPI's own waiting would use a whole core."""


class Mailbox:
    """Exchanges messages with other ranks, without calls that only the other side could end.

    Args:
        comm: a communicator.
        ranks: names for its ranks in errors; None for their own numbers.

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
        """Send each rank its message, and receive one of a fixed length from each sender.

        It checks a message's length before receiving it.

        Args:
            messages: by rank.
            senders: ranks to receive from.
            length: of their messages, in bytes.
            wait: seconds; None for no limit.
            meanwhile: work for this rank between sending and receiving.

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
    """A channel between silos that FedML's receiver does not read.

    Args:
        comm: the communicator of all ranks.
        silos: their ranks in it; a silo's index is its position in this list.

    """
    group = comm.Get_group().Incl(silos)
    # only silos join it, and its messages are not FedML's
    mailbox = Mailbox(comm.Create_group(group, TAG), silos)

    def exchange(
        messages: Mapping[int, bytes], meanwhile: Callable[[], None]
    ) -> Mapping[int, bytes]:
        length = len(next(iter(messages.values()), b""))
        return mailbox.exchange(messages, [*messages], length, wait=None, meanwhile=meanwhile)

    return exchange


def misfit(rank: int, what: str) -> HostError:
    """The error for a rank that speaks another protocol."""
    return HostError(
        f"the silos run different protocols: rank {rank} {what}. Run the same fedml-keylock on "
        "every rank, with the same YAML"
    )
