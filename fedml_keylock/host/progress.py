"""What a rank tells those who wait for it: a parent of its own, and `fedml-keylock run`.

A killed process says nothing, and an MPI runtime kills the other ranks within milliseconds; MPICH's
then names a signal and a process id. So what mpiexec starts forks before it has done anything: the
child is the rank, and the parent waits as a shell script around it would, and says how it ended.
What the rank is doing stands in memory that both see, so that nothing is written to any disk.

`fedml-keylock run` reads what ranks print, on whatever host they are. What they tell it are lines
of JSON among the others; ranks that something else has started print none.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from typing import Any, NoReturn

from ..mpi import started_by
from .abort import DELIVERY

__all__ = ["LISTENING", "TOLD", "epitaph", "note", "tell", "tell_received", "told_in", "watch"]

LISTENING = "FEDML_KEYLOCK_LISTENING"
"""Environment variable that is set where somebody reads what ranks tell."""
TOLD = "fedml-keylock tells: "
"""What such a line begins with."""

SIZE = 256
"""Bytes of the note: one line of ASCII."""

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_PARENT_DIED = 1
"""Linux' PR_SET_PDEATHSIG."""
_OF_TERMINAL = 0x80
"""Linux' SI_KERNEL: nobody's kill, but Ctrl-C, which goes to every process in the foreground."""

_received: Counter[int] = Counter()
_board: mmap.mmap | None = None


def note(what: str) -> None:
    """Note what this rank is doing, for its parent to say. Nothing where there is no parent.

    Args:
        what: rank, round and activity, as the message about its end begins.

    Example:
        >>> note("rank 2: silo 1 (rank 2), round 0: while training")

    """
    if _board is not None:
        _board[:] = what.encode("ascii", "replace")[:SIZE].ljust(SIZE, b"\0")


def tell(**facts: Any) -> None:
    """Tell `fedml-keylock run` something that the server's host may know. Else nothing is printed.

    Args:
        facts: by name, as JSON has them.

    """
    if os.environ.get(LISTENING):
        # at once: what is written in parts may have another rank's words in it
        os.write(2, f"{TOLD}{json.dumps(facts)}\n".encode())


def tell_received(sender: int, size: int) -> None:
    """Tell how many bytes the server has got of a rank so far, as MPI counts them.

    Args:
        sender: the rank.
        size: of its message, in bytes.

    """
    _received[sender] += size
    tell(sender=sender, bytes=_received[sender])


def name_warnings(rank: str) -> None:
    """Begin Python's warnings with the rank that they are of, where somebody reads them."""
    if os.environ.get(LISTENING):
        plain = warnings.formatwarning
        warnings.formatwarning = lambda *given, **more: f"rank {rank}: {plain(*given, **more)}"


def told_in(line: str) -> dict[str, Any] | None:
    """What a line of a job's output tells; None of any other line.

    Example:
        >>> told_in('fedml-keylock tells: {"round": 3}'), told_in("Epoch: 3")
        ({'round': 3}, None)

    """
    _, mark, told = line.partition(TOLD)
    try:
        facts = json.loads(told) if mark else None
    except (ValueError, RecursionError):  # two ranks' words in one line, or anybody's print
        return None
    return facts if isinstance(facts, dict) else None


def watch() -> None:
    """In a process that an MPI runtime started: fork, return in the child, and wait in the parent.

    To be called before there are threads, and before MPI is up. The parent ends as the child ends:
    with its exit status, or by the same signal, for the runtime to see. Does nothing elsewhere.
    """
    global _board
    rank = started_by(os.environ)
    # elsewhere than on Linux a child cannot be told to end with its parent
    if rank is None or _board is not None or sys.platform != "linux":
        return
    _board = mmap.mmap(-1, SIZE)  # anonymous, and shared with the child
    note(f"rank {rank}: before its first round")
    name_warnings(rank)
    parent = os.getpid()
    # from before the child is there: no signal to pass on is missed
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, *_PASSED_ON})
    child = os.fork()
    if child:
        _wait(child, _board)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    # the runtime may end only the process that it has started: the child is not to live on
    ctypes.CDLL(None).prctl(_PARENT_DIED, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def epitaph(doing: str, number: int) -> str:
    """The line about a rank that was killed.

    Args:
        doing: its last note.
        number: the signal.

    Example:
        >>> print(epitaph("rank 2: silo 1 (rank 2), round 0: while training", 9))
        fedml-keylock: rank 2: silo 1 (rank 2), round 0: while training, it was killed (signal ...

    """
    name = signal.Signals(number).name if number in set(signal.Signals) else "unknown"
    if number == signal.SIGKILL:
        name += ": often for want of memory, see dmesg"
    return (
        f"fedml-keylock: {doing}, it was killed (signal {number}, {name}); the job ends on every "
        "rank. Started again, it begins at round 0; lock: paper goes on from the silos' vaults"
    )


def _wait(child: int, board: mmap.mmap) -> NoReturn:
    asked: set[int] = set()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while (ended := os.waitpid(child, os.WNOHANG))[0] != child:
        found = signal.sigwaitinfo({signal.SIGCHLD, *_PASSED_ON})
        if found.si_signo != signal.SIGCHLD:
            asked.add(found.si_signo)
            if found.si_code != _OF_TERMINAL:  # which the child gets by itself
                os.kill(child, found.si_signo)
    status = os.waitstatus_to_exitcode(ended[1])
    if status >= 0:
        os._exit(status)
    # who was asked to end and did is not a fault
    if -status not in asked:
        doing = bytes(board).rstrip(b"\0").decode("ascii", "replace")
        sys.stderr.write(epitaph(doing, -status) + "\n")
        sys.stderr.flush()
        time.sleep(DELIVERY)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the child's is the one to look at
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.kill(os.getpid(), -status)
    os._exit(128 - status)  # a signal that does not end a process by itself
