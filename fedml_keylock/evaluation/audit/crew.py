"""Runs an audit's tasks: in this process, in a pool of processes, or on MPI ranks."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol, cast

import torch

from ...errors import AttackError, first_line
from ...mpi import misfit, size_of, started_by
from .plan import Task
from .work import work_on

__all__ = ["Alone", "Crew", "Job", "Pool", "Ranks", "muster"]

Job = tuple[Task, Path | None]
"""A task, and the file of its checkpoint."""

Done = Callable[[int, bytes | str], None]
"""Takes a job's index and its result from `work_on`."""

_PATIENCE = 0.005  # seconds between two polls of a waiting rank


class Crew(Protocol):
    """Runs jobs in any order, and reports each when it is done."""

    def run(self, jobs: Sequence[Job], done: Done) -> None:
        """Run all jobs; calls `done` once for each, one at a time."""


class Alone:
    """Runs the jobs one after the other in this process."""

    def run(self, jobs: Sequence[Job], done: Done) -> None:
        """Run all jobs."""
        for index, job in enumerate(jobs):
            done(index, work_on(*job))


class Pool:
    """Runs the jobs in processes on this machine, one thread each.

    The processes are forked: they need no imports, and find the jobs in memory.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, jobs: Sequence[Job], done: Done) -> None:
        """Run all jobs; AttackError if a process was killed, for example for lack of memory."""
        count = min(self.workers, len(jobs))
        if count <= 1:
            Alone().run(jobs, done)
            return
        try:
            with ProcessPoolExecutor(
                count,
                mp_context=multiprocessing.get_context("fork"),
                initializer=_follow,
                initargs=(os.getpid(), jobs),
            ) as pool:
                places = {
                    pool.submit(_one_of_the_forked, place): place for place in range(len(jobs))
                }
                try:
                    for future in as_completed(places):
                        done(places[future], future.result())
                finally:
                    pool.shutdown(cancel_futures=True)
        except BrokenProcessPool:
            raise AttackError(
                "a process of the audit was killed, perhaps for want of memory: run it again with "
                "fewer --workers; what is done is kept"
            ) from None


class Ranks:
    """Runs the jobs on MPI ranks of any hosts, by an ``MPICommExecutor``'s executor.

    Rank 0 leads, and works while the others do.
    """

    def __init__(self, executor: Executor) -> None:
        self.executor = executor

    def run(self, jobs: Sequence[Job], done: Done) -> None:
        """Run all jobs; AttackError if a job cannot be sent to another rank."""
        turn = threading.Lock()
        failed: list[BaseException] = []

        def finish(index: int, made: bytes | str) -> None:
            with turn:
                done(index, made)

        def arrived(index: int, future: Future[bytes | str]) -> None:
            try:
                if not future.cancelled():
                    finish(index, future.result())
            except BaseException as error:
                failed.append(error)

        futures = [self.executor.submit(work_on, *job) for job in jobs]
        for index, future in enumerate(futures):
            future.add_done_callback(partial(arrived, index))
        try:
            for index in reversed(range(len(jobs))):
                # a job that no rank has started can be taken back from the queue's end
                if not failed and futures[index].cancel():
                    finish(index, work_on(*jobs[index]))
            while not failed and not all(future.done() for future in futures):
                wait(futures, timeout=1.0)
        finally:
            for future in futures:
                future.cancel()
        if failed:
            if isinstance(failed[0], AttackError):
                raise failed[0]
            said = first_line(failed[0])
            raise AttackError(f"a task cannot be done by another rank: {said}") from failed[0]


@contextmanager
def muster(workers: int | None = None) -> Iterator[Crew | None]:
    """The available workers: MPI ranks under an ``mpiexec``, else processes on this machine.

    Under an ``mpiexec`` every rank must call this. Rank 0 gets the crew; the others work until
    rank 0 has left, and then get None. Without MPI there are `workers` processes, by default one
    per core.

    Raises:
        AttackError: MPI does not see the ranks that were started.

    Example:
        >>> with muster(workers=1) as crew:
        ...     type(crew).__name__
        'Alone'

    """
    if started_by(os.environ, slurm=False) is None:
        yield _local(workers)
        return
    from mpi4py import MPI

    size = MPI.COMM_WORLD.Get_size()
    wanted = size_of(os.environ)
    if size == 1 and wanted != "1":  # else each rank would run the whole audit in the same folder
        library = MPI.Get_library_version()
        raise AttackError(misfit(wanted or "an unknown number of", size, "this mpiexec", library))
    if size == 1:
        yield _local(workers)
        return
    from mpi4py.futures import MPICommExecutor

    # what MPI delivers may come from the user's own modules, which are searched here first
    sys.path.insert(0, str(Path.cwd()))
    with MPICommExecutor(MPI.COMM_WORLD, root=0, backoff=_PATIENCE) as executor:
        yield None if executor is None else Ranks(cast(Executor, executor))


def _local(workers: int | None) -> Crew:
    count = workers or len(os.sched_getaffinity(0))
    return Pool(count) if count > 1 else Alone()


_forked: list[Job] = []


def _one_of_the_forked(index: int) -> bytes | str:
    return work_on(*_forked[index])


def _follow(parent: int, jobs: Sequence[Job]) -> None:
    """End when the parent process ends: a killed parent does not notify its children."""
    # OpenMP's threads are not forked: waiting for them would never end
    torch.set_num_threads(1)
    _forked[:] = jobs

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
