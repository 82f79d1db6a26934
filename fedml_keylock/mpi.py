"""Reads what MPI runtimes tell the processes that they start, before MPI is initialised."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["misfit", "size_of", "started_by", "without_runtime"]

SLURM = "SLURM_PROCID"
"""Slurm's rank. A batch script that starts no ranks has it too."""
RANK = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")
"""Variables with a process's rank: of MPICH's PMI, PMIx and Open MPI."""
SIZE = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
"""Variables with the number of ranks. PMIx tells it to MPI only; Slurm sets one where it started
the ranks."""
TOLD = ("PMI_", "PMIX_", "OMPI_", "HYDRA_", "MPIEXEC_", "MPI_LOCAL")
"""Prefixes of the variables that runtimes set for ranks."""


def started_by(environment: Mapping[str, str], *, slurm: bool = True) -> str | None:
    """The rank that an MPI runtime has given this process; None if none has started it.

    Args:
        environment: the process's.
        slurm: whether Slurm counts as a runtime, without an MPI's own.

    Example:
        >>> started_by({"PMI_RANK": "2"}), started_by({})
        ('2', None)

    """
    names = (*RANK, SLURM) if slurm else RANK
    return next((environment[name] for name in names if name in environment), None)


def size_of(environment: Mapping[str, str]) -> str | None:
    """The number of ranks; None if the runtime does not say.

    Example:
        >>> size_of({"PMI_SIZE": "4"}), size_of({"PMIX_RANK": "0"})
        ('4', None)

    """
    return next((environment[name] for name in SIZE if name in environment), None)


def without_runtime(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without variables for ranks, in which another MPI job can start.

    Example:
        >>> without_runtime({"PMI_RANK": "2", "PATH": "/bin"})
        {'PATH': '/bin'}

    """
    return {name: value for name, value in environment.items() if not name.startswith(TOLD)}


def misfit(started: str, seen: int, mpiexec: str, library: str) -> str:
    """The message when MPI does not see the ranks that were started.

    Args:
        started: how many ranks were started.
        seen: the size of MPI's world.
        mpiexec: the launcher.
        library: ``MPI.Get_library_version()``.

    Example:
        >>> misfit("4", 1, "/usr/bin/mpiexec", "MPICH 4.2")[:41]
        '4 ranks were started and MPI sees 1: /usr'

    """
    return (
        f"{started} ranks were started and MPI sees {seen}: {mpiexec} is not of the MPI that "
        f"mpi4py uses ({library.splitlines()[0].strip()}); fedml-keylock doctor says more"
    )
