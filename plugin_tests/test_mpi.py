"""Ranks that MPI does not see would each do the whole audit, in one folder: they are refused."""

import sys
from types import SimpleNamespace

import pytest

from fedml_keylock.errors import AttackError
from fedml_keylock.evaluation.audit import Alone, muster
from fedml_keylock.mpi import RANK, SIZE, SLURM, started_by


@pytest.fixture
def alone(monkeypatch):
    """An MPI that sees this process only, whoever started it."""
    for name in (*RANK, *SIZE, SLURM):
        monkeypatch.delenv(name, raising=False)
    world = SimpleNamespace(Get_size=lambda: 1)
    mpi = SimpleNamespace(COMM_WORLD=world, Get_library_version=lambda: "Some MPI 1.0 \nmore")
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=mpi))


REFUSED = {
    "MPICH": ({"PMI_RANK": "0", "PMI_SIZE": "4"}, "4"),
    "Open MPI": ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}, "4"),
    "PMIx": ({"PMIX_RANK": "1"}, "an unknown number of"),
    "PMIx, by Slurm": ({"PMIX_RANK": "1", "SLURM_STEP_NUM_TASKS": "4"}, "4"),
}


@pytest.mark.parametrize("runtime", REFUSED)
def test_ranks_that_mpi_does_not_see_are_refused(runtime, alone, monkeypatch):
    variables, count = REFUSED[runtime]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(AttackError, match=rf"^{count} ranks .* MPI sees 1.* \(Some MPI 1\.0\);"),
        muster(workers=1),
    ):
        pass


LET = {
    "nobody": {},
    "MPICH, one rank": {"PMI_RANK": "0", "PMI_SIZE": "1"},
    "Open MPI, one rank": {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
    "PMIx by Slurm, one rank": {"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "1"},
    "a batch script of Slurm's, which starts no ranks": {SLURM: "0"},
}


@pytest.mark.parametrize("runtime", LET)
def test_one_process_does_the_audit_by_itself(runtime, alone, monkeypatch):
    for name, value in LET[runtime].items():
        monkeypatch.setenv(name, value)
    with muster(workers=1) as crew:
        assert isinstance(crew, Alone)


def test_slurm_alone_is_a_runtime_for_a_job_only():
    assert started_by({SLURM: "0"}) == "0"
    assert started_by({SLURM: "0"}, slurm=False) is None
