"""Ends a whole MPI job when one rank fails: FedML would leave the other ranks waiting forever."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ..errors import KeyLockError, where_kept
from ..mpi import started_by

__all__ = ["HOOKS", "AbortOnError", "end_job", "in_mpi_job"]

HEAD_START = 0.7
"""Seconds that a rank leaves each lower rank, so that an error on all ranks is printed once."""

DELIVERY = 0.3
"""Seconds for the runtime to forward the message: an abort drops what it has not read."""


def end_job(error: BaseException, status: int = 1) -> None:
    """Print what went wrong and end the job on every rank. Returns if there is no other rank.

    An error of this package takes one line; any other comes with its traceback. In a silo of a
    defended job its text stays in the silo's log, and only classes and places are printed: mpiexec
    carries the output to where the job was started.
    """
    world = _world() or _joined()
    rank = 0 if world is None else world.Get_rank()
    ours = isinstance(error, KeyLockError)
    if ours and rank > 0:
        time.sleep(HEAD_START * min(rank, 4))
    if ours:
        # over gRPC each process is alone, and the error already names it
        message = f"fedml-keylock: {'' if world is None else f'rank {rank}: '}{error}\n"
    else:
        kept = where_kept(error)
        details = "".join(traceback.format_exception(error)) if kept is None else _places(error)
        more = "" if kept is None else f" ({type(error).__name__}; {kept})"
        message = f"{details}fedml-keylock: rank {rank} failed{more}; the job ends on every rank\n"
    sys.stdout.flush()
    sys.stderr.write(message)
    sys.stderr.flush()
    if world is not None:
        time.sleep(DELIVERY)
        world.Abort(status)
        os._exit(status)  # Abort may return before the runtime ends this process


def _places(error: BaseException) -> str:
    """Classes and places of an error and of its causes, without their texts."""
    found, seen = [], set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        frames = traceback.extract_tb(at.__traceback__)
        lines = [f'  File "{x.filename}", line {x.lineno}, in {x.name}\n' for x in frames]
        found.append("".join((*lines, f"{type(at).__qualname__}\n")))
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return "".join(reversed(found))


def _world() -> Any:
    """MPI's world if MPI is up and this process is one of several; otherwise None."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is None or not mpi.Is_initialized() or mpi.Is_finalized():
        return None
    return mpi.COMM_WORLD if mpi.COMM_WORLD.Get_size() > 1 else None


def _joined() -> Any:
    """MPI's world, joined only now if a runtime started this process; otherwise None.

    The other ranks are in MPI's start, or close to it, and would wait for this one forever.
    """
    if started_by(os.environ) is None or "mpi4py.MPI" in sys.modules:
        return None
    try:
        import mpi4py.MPI  # noqa: F401  # importing it initialises MPI
    except (ImportError, RuntimeError):
        return None
    return _world()


def in_mpi_job() -> bool:
    """Whether this process is one of several ranks of a running MPI job.

    Example:
        >>> in_mpi_job()
        False

    """
    return _world() is not None


class AbortOnError:
    """Hooks for uncaught exceptions, in the main thread and in FedML's receiver thread.

    Example:
        >>> hooks = AbortOnError()
        >>> hooks.install(); hooks.remove()

    """

    def __init__(self) -> None:
        self._before: tuple[Callable[..., Any], Callable[..., Any]] | None = None

    def install(self) -> None:
        """Install the hooks; previous ones still run outside MPI jobs."""
        if self._before is None:
            self._before = (sys.excepthook, threading.excepthook)
            sys.excepthook = self._main
            threading.excepthook = self._thread

    def stay(self) -> None:
        """Install the main thread's hook again if somebody has replaced it."""
        if self._before is not None and sys.excepthook != self._main:
            self._before = (sys.excepthook, self._before[1])
            sys.excepthook = self._main

    def remove(self) -> None:
        """Restore the previous hooks."""
        if self._before is not None:
            sys.excepthook, threading.excepthook = self._before
            self._before = None

    def _main(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyLockError) or in_mpi_job():
            end_job(error)
        elif self._before is not None:
            self._before[0](kind, error, trace)

    def _thread(self, args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and in_mpi_job():
            end_job(args.exc_value)
        elif self._before is not None:
            self._before[1](args)


HOOKS = AbortOnError()
"""This process's hooks."""
