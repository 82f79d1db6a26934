"""The parent of a rank: it says how a killed one ended, and is not noticed otherwise."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedml_keylock.host.progress import SIZE
from fedml_keylock.mpi import started_by

BEGIN = """
import os, signal, sys, time
from fedml_keylock.host.progress import note, watch
started = os.getpid()
watch()
note("rank 2: silo 1 (rank 2), round 7: while training")
"""


WITHOUT_MPI = {
    name: value for name, value in os.environ.items() if started_by({name: value}) is None
}


def start(then: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + then],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=WITHOUT_MPI | environment,
    )


def run(then: str, **environment: str) -> tuple[int, str, str]:
    process = start(then, **environment)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def is_running(pid: int) -> bool:
    try:
        # an orphan that nobody has waited for yet is a zombie
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_without_an_mpi_runtime_there_is_no_parent():
    assert run("print(os.getpid() == started)") == (0, "True\n", "")


def test_with_one_there_is():
    assert run("print(os.getpid() == started)", PMI_RANK="2") == (0, "False\n", "")


@pytest.mark.parametrize("how", ["sys.exit(5)", "os._exit(5)"])
def test_the_exit_status_is_the_rank_s(how):
    assert run(how, PMI_RANK="2") == (5, "", "")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_killed_rank_is_named_in_one_line(number):
    status, _, said = run(f"os.kill(os.getpid(), {int(number)})", PMI_RANK="2")
    assert status == -number
    assert said.count("\n") == 1
    begin = (
        "fedml-keylock: rank 2: silo 1 (rank 2), round 7: while training, it was killed (signal "
    )
    assert said.startswith(f"{begin}{int(number)}, {number.name}")
    # true of lock: rotated, which goes on from nothing, and of lock: paper
    assert "begins at round 0; lock: paper goes on from the silos' vaults" in said


def test_a_rank_that_is_killed_before_its_first_note_is_named_by_the_runtime():
    killed = (
        "import os\nfrom fedml_keylock.host.progress import watch\nwatch()\nos.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", killed],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=WITHOUT_MPI | {"OMPI_COMM_WORLD_RANK": "3"},
    )
    assert done.stderr.startswith("fedml-keylock: rank 3: before its first round, it was killed")


def test_who_is_asked_to_end_ends_without_a_word():
    process = start("print(os.getpid(), flush=True); time.sleep(60)", PMI_RANK="2")
    child = int(process.stdout.readline())
    process.terminate()
    assert process.wait(10) == -signal.SIGTERM
    assert process.stderr.read() == ""
    assert not is_running(child)


def test_the_rank_gets_the_signals_of_its_parent():
    then = "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(7)); print(flush=True)\n"
    then += "for _ in range(600): time.sleep(0.1)"
    process = start(then, PMI_RANK="2")
    process.stdout.readline()
    process.send_signal(signal.SIGUSR1)
    assert process.wait(10) == 7


def test_the_rank_ends_with_its_parent():
    process = start("print(os.getpid(), flush=True); time.sleep(60)", PMI_RANK="2")
    child = int(process.stdout.readline())
    process.kill()
    process.wait(10)
    end = time.monotonic() + 10
    while is_running(child) and time.monotonic() < end:
        time.sleep(0.02)
    assert not is_running(child)


def test_a_long_note_is_cut():
    then = f"note('rank 2: ' + 'x' * {2 * SIZE}); os.kill(os.getpid(), 9)"
    _, _, said = run(then, PMI_RANK="2")
    assert said.startswith("fedml-keylock: rank 2: xxx")
    assert said.count("x") < SIZE
