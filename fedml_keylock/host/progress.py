"""Reports a rank's progress and end: to a parent process of its own, and to `fedml-keylock run`.

A killed process reports nothing, and an MPI runtime then kills the other ranks within milliseconds;
MPICH names only a signal and a process id. So each process that mpiexec starts forks first. The
child is the rank. The parent waits for it, and reports how it ended. The rank notes what it is
doing in shared memory, and writes nothing to a disk.

`fedml-keylock run` reads the ranks' output from any host. Their reports to it are lines of JSON
among the others; ranks that another program started print none.
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
"""Environment variable that is set if somebody reads the ranks' reports."""
TOLD = "fedml-keylock tells: "
"""Prefix of a report's line."""

SIZE = 256
"""Size of the note in bytes: one line of ASCII."""

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_PARENT_DIED = 1
"""Linux' PR_SET_PDEATHSIG."""
_OF_TERMINAL = 0x80
"""Linux' SI_KERNEL: Ctrl-C, which the kernel sends to every process in the foreground."""

_received: Counter[int] = Counter()
_board: mmap.mmap | None = None


def note(what: str) -> None:
    """Note what this rank is doing, for its parent's report. Does nothing without such a parent.

    Args:
        what: rank, round and activity, as the report about its end begins.

    Example:
        >>> note("rank 2: silo 1 (rank 2), round 0: while training")

    """
    if _board is not None:
        _board[:] = what.encode("ascii", "replace")[:SIZE].ljust(SIZE, b"\0")


def tell(**facts: Any) -> None:
    """Report facts to `fedml-keylock run`, if it reads. The server's host may see them.

    Args:
        facts: JSON values by name.

    """
    if os.environ.get(LISTENING):
        # in one write: other ranks' output could come between parts
        os.write(2, f"{TOLD}{json.dumps(facts)}\n".encode())


def tell_received(sender: int, size: int) -> None:
    """Report the bytes that the server has received from a rank so far, as MPI counts them.

    Args:
        sender: the rank.
        size: size of its message in bytes.

    """
    _received[sender] += size
    tell(sender=sender, bytes=_received[sender])


def name_warnings(rank: str) -> None:
    """Prefix Python's warnings with their rank, if somebody reads the ranks' reports."""
    if os.environ.get(LISTENING):
        plain = warnings.formatwarning
        warnings.formatwarning = lambda *given, **more: f"rank {rank}: {plain(*given, **more)}"


def told_in(line: str) -> dict[str, Any] | None:
    """The facts in a line of a job's output; None for a line without.

    Example:
        >>> told_in('fedml-keylock tells: {"round": 3}'), told_in("Epoch: 3")
        ({'round': 3}, None)

    """
    _, mark, told = line.partition(TOLD)
    try:
        facts = json.loads(told) if mark else None
    except (ValueError, RecursionError):  # two ranks' output in one line, or anybody's print
        return None
    return facts if isinstance(facts, dict) else None


def watch() -> None:
    """In a process that an MPI runtime started: fork, return in the child, and wait in the parent.

    Call it before threads and MPI start. The parent ends as the child does: with its exit status,
    or by the same signal, so that the runtime sees it. Does nothing in other processes.
    """
    global _board
    rank = started_by(os.environ)
    # only Linux can end a child with its parent
    if rank is None or _board is not None or sys.platform != "linux":
        return
    _board = mmap.mmap(-1, SIZE)  # anonymous, and shared with the child
    note(f"rank {rank}: before its first round")
    name_warnings(rank)
    parent = os.getpid()
    # set before the fork, so that no signal is missed
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, *_PASSED_ON})
    child = os.fork()
    if child:
        _wait(child, _board)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    # the runtime may end only the parent: the child must end too
    ctypes.CDLL(None).prctl(_PARENT_DIED, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def epitaph(doing: str, number: int) -> str:
    """The line about a rank that was killed.

    Args:
        doing: the rank's last note.
        number: number of the signal.

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
            if found.si_code != _OF_TERMINAL:  # the child gets it itself
                os.kill(child, found.si_signo)
    status = os.waitstatus_to_exitcode(ended[1])
    if status >= 0:
        os._exit(status)
    # a rank that ended on request is no fault
    if -status not in asked:
        doing = bytes(board).rstrip(b"\0").decode("ascii", "replace")
        sys.stderr.write(epitaph(doing, -status) + "\n")
        sys.stderr.flush()
        time.sleep(DELIVERY)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # only the child's core dump is useful
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.kill(os.getpid(), -status)
    os._exit(128 - status)  # a signal that does not end a process
