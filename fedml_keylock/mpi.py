"""What MPI runtimes tell the processes that they start, before MPI is up in them."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["misfit", "size_of", "started_by", "without_runtime"]

SLURM = "SLURM_PROCID"
"""Slurm's rank, which a batch script has too that starts no ranks."""
RANK = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")
"""A process's rank: of MPICH's PMI, PMIx and Open MPI."""
SIZE = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
"""How many ranks were started. PMIx tells that to MPI only; Slurm, which may have it, says so."""
TOLD = ("PMI_", "PMIX_", "OMPI_", "HYDRA_", "MPIEXEC_", "MPI_LOCAL")
"""What begins so is told to ranks."""


def started_by(environment: Mapping[str, str], *, slurm: bool = True) -> str | None:
    """The rank that an MPI runtime has given this process; None when none has started it.

    Args:
        environment: the process's.
        slurm: whether Slurm alone, without an MPI's runtime, is one.

    Example:
        >>> started_by({"PMI_RANK": "2"}), started_by({})
        ('2', None)

    """
    names = (*RANK, SLURM) if slurm else RANK
    return next((environment[name] for name in names if name in environment), None)


def size_of(environment: Mapping[str, str]) -> str | None:
    """How many ranks were started; None where the runtime does not say.

    Example:
        >>> size_of({"PMI_SIZE": "4"}), size_of({"PMIX_RANK": "0"})
        ('4', None)

    """
    return next((environment[name] for name in SIZE if name in environment), None)


def without_runtime(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which another MPI job can be started: without what ranks are told.

    Example:
        >>> without_runtime({"PMI_RANK": "2", "PATH": "/bin"})
        {'PATH': '/bin'}

    """
    return {name: value for name, value in environment.items() if not name.startswith(TOLD)}


def misfit(started: str, seen: int, mpiexec: str, library: str) -> str:
    """What is said where MPI does not see the ranks that were started.

    Args:
        started: how many were.
        seen: the size of MPI's world.
        mpiexec: what started them.
        library: ``MPI.Get_library_version()``.

    Example:
        >>> misfit("4", 1, "/usr/bin/mpiexec", "MPICH 4.2")[:41]
        '4 ranks were started and MPI sees 1: /usr'

    """
    return (
        f"{started} ranks were started and MPI sees {seen}: {mpiexec} is not of the MPI that "
        f"mpi4py uses ({library.splitlines()[0].strip()}); fedml-keylock doctor says more"
    )
