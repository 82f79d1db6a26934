"""A job over two hosts: the lock works in both, and what crosses between them is public."""

from __future__ import annotations

import dataclasses
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hosts import ADDRESSES, Hosts, missing, two_hosts
from job_harness import LIMIT, Job, variables, write_job
from link_capture import streams
from safetensors.torch import load_file
from test_wire import LOCK, assert_kept, private_arrays, runs_of, windows
from torch import Tensor

pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(missing()), reason=missing())]
RANKS = (2, 2)
"""The server and silo 0 on the first host, silos 1 and 2 on the second."""


@dataclasses.dataclass(frozen=True)
class Ran:
    """A job that ran on two hosts."""

    on: tuple[Job, Job]
    sent: tuple[int, int]
    crossed: dict[tuple[str, str], bytes]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with two_hosts(tmp_path_factory.mktemp("hosts")) as both:
        yield both


@pytest.fixture(scope="module")
def ran(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    kept = tmp_path_factory.mktemp("link") / "frames"
    before = [host.sent() for host in hosts.both]
    with hosts.captured(kept):
        on = start(hosts)
    sent = [h.sent() - b for h, b in zip(hosts.both, before, strict=True)]
    assert on[0].status == 0, on[0].output[-2000:]
    return Ran(on, (sent[0], sent[1]), streams(kept.read_bytes()))


def start(hosts: Hosts, case: str = "") -> tuple[Job, Job]:
    """Run a job; it as each host sees it."""
    numbers = dict.fromkeys(("worker_num", "client_num_in_total", "client_num_per_round"), 3)
    for host in hosts.both:
        write_job(host.folder, LOCK, **numbers)
    line = hosts.mpiexec(RANKS)
    line += ["-m", "fedml_keylock", "job_main.py", "--cf", "fedml_config.yaml"]
    began = time.monotonic()
    done = subprocess.run(
        line,
        env=variables(sum(RANKS), case),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    seconds = time.monotonic() - began
    first, second = (Job(h.folder, done.returncode, done.stdout, seconds) for h in hosts.both)
    return first, second


def vault(job: Job) -> list[str]:
    return sorted(path.name for path in (job.folder / "keylock_vault").glob("*.safetensors"))


def test_each_host_keeps_the_locks_of_its_own_silos(ran: Ran) -> None:
    assert vault(ran.on[0]) == ["silo-0.safetensors"]
    assert vault(ran.on[1]) == ["silo-1.safetensors", "silo-2.safetensors"]


@pytest.mark.parametrize("silo", [1, 2])
def test_silos_on_the_second_host_train_their_locks(ran: Ran, silo: int) -> None:
    folder = ran.on[1].folder / "keylock_vault"
    start = load_file(folder / f"silo-{silo}" / "round-00000.safetensors")
    end = load_file(folder / f"silo-{silo}.safetensors")
    for name in ("weight_gamma", "bias_gamma", "bias_beta"):
        assert not np.allclose(start[f"3.keylock.{name}"], end[f"3.keylock.{name}"])
    assert np.allclose(start["3.keylock.key"], end["3.keylock.key"])


def test_the_models_crossed_the_link(ran: Ran) -> None:
    first, second = ran.on
    for rank in (2, 3):
        assert [m["model"] for m in second.messages(rank)].count(True) == 2
    uploads = sum(m["bytes"] for rank in (2, 3) for m in second.messages(rank) if m["model"])
    # at the least the server's model in two rounds and once more, for two silos
    downloads = 6 * max(m["bytes"] for m in first.messages(0) if m["model"])
    a, b = ADDRESSES
    assert ran.sent[0] >= len(ran.crossed[a, b]) >= downloads
    assert ran.sent[1] >= len(ran.crossed[b, a]) >= uploads


def test_no_private_bytes_cross_the_link(ran: Ran) -> None:
    crossed = b"".join(ran.crossed.values())
    find: Callable[[Job], dict[tuple[str, str], Tensor]] = private_arrays
    found = [find(job) for job in ran.on]
    assert [len({where for where, _ in arrays}) for arrays in found] == [3, 6]
    for arrays in found:
        assert_kept(arrays, crossed)


def test_the_same_search_finds_the_public_weights(ran: Ran) -> None:
    """Control: both ways, and in the uploads of each silo of the second host."""
    a, b = ADDRESSES
    models = {2: (b, a), 3: (b, a), 0: (a, b)}
    for rank, way in models.items():
        crossed = windows(ran.crossed[way])
        sent = [m for m in ran.on[bool(rank)].decoded(rank) if "model_params" in m]
        for message in sent:
            for name in ("0.weight", "6.weight"):
                share = np.isin(runs_of(message["model_params"][name]), crossed).mean()
                assert share > 0.95, f"{name} of rank {rank}: {share:.2f} found"


def test_a_refusal_on_the_second_host_ends_the_job_on_both(tmp_path: Path) -> None:
    with two_hosts(tmp_path) as others:
        job, _ = start(others, case="private")
        assert job.status != 0
        assert len(job.ours) == 1, job.output[-2000:]
        assert "silo 1 (rank 2), round 0: 3.keylock.bias_gamma" in job.ours[0]
        # mpiexec has ended, and its ranks are ending
        limit = time.monotonic() + 10
        while any(host.running() for host in others.both):
            assert time.monotonic() < limit, "ranks live on"
            time.sleep(0.1)


def test_what_runs_on_the_second_host_has_the_environment_of_the_first(hosts: Hosts) -> None:
    """By hydra's own protocol: the launcher passes none, as ssh does."""
    # in one write: mpiexec mixes what the ranks say
    line = "f'{os.uname().nodename} {os.environ.get(\"OMP_NUM_THREADS\")}\\n'"
    script = f"import os; os.write(1, {line}.encode())"

    def said(*options: str) -> list[str]:
        done = subprocess.run(
            [*hosts.mpiexec((1, 1), *options), "-c", script],
            env=variables(2, ""),
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=True,
        )
        return sorted(done.stdout.splitlines())

    assert said() == ["host-a 1", "host-b 1"]
    # so that a cluster whose mpiexec is told to pass nothing must be told the threads
    assert said("-genvnone") == ["host-a 1", "host-b None"]
    assert said("-genvnone", "-genv", "OMP_NUM_THREADS", "2") == ["host-a 2", "host-b 2"]


def test_a_silos_host_starts_a_job_whose_server_is_on_another(hosts: Hosts) -> None:
    """Ranks are where the list of hosts says, and what they print arrives where it was started."""
    script = (
        "import os; os.write(1, f'{os.environ[\"PMI_RANK\"]} {os.uname().nodename}\\n'.encode())"
    )
    done = subprocess.run(
        [*hosts.mpiexec((1, 2), started_on=hosts.second), "-c", script],
        env=variables(3, ""),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    assert sorted(done.stdout.splitlines()) == ["0 host-a", "1 host-b", "2 host-b"]
