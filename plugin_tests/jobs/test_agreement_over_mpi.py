"""Silos agree on secrets over MPI: they have them, server and wire do not, nobody hangs.

Each job is a script of four ranks without FedML. What a rank found it writes into its own file.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from job_harness import run_line

from fedml_keylock.errors import HostError
from fedml_keylock.host.key_agreement import ANSWER, NONCE, Handshake, agree
from fedml_keylock.host.launch import find_mpiexec
from fedml_keylock.host.mailbox import TAG
from fedml_keylock.types import JobSecrets

SERVER, LEADER, SILOS = 0, 1, (1, 2, 3)
HELLO = Handshake(1).length
RUN = 8
"""Bytes of a secret that must not be seen together."""
SLACK = 1.5
"""Seconds that a rank may take longer than its wait, on a machine that does other things too."""

COMMON = """
import json, sys, time
from pathlib import Path
from mpi4py import MPI
from fedml_keylock.errors import HostError
from fedml_keylock.host.key_agreement import ANSWER, Handshake, agree
from fedml_keylock.host.mailbox import TAG

comm, HELLO = MPI.COMM_WORLD, Handshake(1).length
rank = comm.Get_rank()

class Comm:
    '''Lets through what agree needs and nothing else, and keeps what is sent.'''

    def __init__(self, *, unread=False, flip=None):
        self.sent, self.unread, self.flip = [], unread, flip
        self.Get_rank, self.Get_size, self.Iprobe = comm.Get_rank, comm.Get_size, comm.Iprobe
        # making it takes all silos, of which a test may stop some
        self.Get_group, self.Create_group = comm.Get_group, lambda group, tag: None

    def Isend(self, buffer, dest, tag):
        self.sent.append([dest, tag, bytes(buffer).hex()])
        # a synchronous one is over only when it is received, as with an MPI that buffers nothing
        return (comm.Issend if self.unread else comm.Isend)(buffer, dest=dest, tag=tag)

    def Recv(self, buffer, source, tag):
        comm.Recv(buffer, source=source, tag=tag)
        if self.flip and self.flip[:2] == (source, len(buffer)):
            buffer[self.flip[2]] ^= 128

def attempt(through, wait):
    began, worked = time.monotonic(), time.process_time()
    try:
        agreed = agree(through, Handshake(rank), wait=wait)
        pairs = {other + 1: secret.hex() for other, secret in agreed.pairs.items()}
        found = {"secret": agreed.group.hex(), "pairs": pairs}
        found["transcript"] = agreed.transcript.hex()
        assert agreed.silo == rank - 1
    except HostError as error:
        found = {"error": str(error)}
    found["seconds"] = time.monotonic() - began
    found["worked"] = time.process_time() - worked
    return found | {"sent": through.sent}

def tell(found, kind="rank"):
    path = Path(f"{kind}-{rank}.json")
    path.with_suffix(".part").write_text(json.dumps(found))
    path.with_suffix(".part").rename(path)

def told(ranks, kind="rank"):
    return all(Path(f"{kind}-{other}.json").exists() for other in ranks)

def drain():
    '''Take in what is left, so that no message waits when MPI ends or a next attempt starts.'''
    comm.Barrier()
    status, end = MPI.Status(), time.monotonic() + 0.05
    while time.monotonic() < end:
        if comm.Iprobe(status=status):
            buffer = bytearray(status.Get_count(MPI.BYTE))
            comm.Recv(buffer, source=status.source, tag=status.tag)
    comm.Barrier()
"""


def ranks_of(folder: Path, script: str, *arguments: str) -> dict[int, Any]:
    """Run a script on four ranks; what each rank told."""
    (folder / "script.py").write_text(COMMON + script)
    line = [str(find_mpiexec()), "-n", "4", sys.executable, "script.py", *arguments]
    job = run_line(line, folder, ranks=4, limit=60)
    assert job.status == 0, job.output
    return {rank: json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(4)}


AGREE = """
if rank == 0:
    # until all silos are done it looks for whatever reaches it, and then for what they do send it
    status, before, after = MPI.Status(), 0, 0
    while not told((1, 2, 3), "done"):
        before += comm.Iprobe(source=MPI.ANY_SOURCE, tag=MPI.ANY_TAG)
        time.sleep(0.0005)
    before += comm.Iprobe(source=MPI.ANY_SOURCE, tag=MPI.ANY_TAG)
    tell({}, "looked")
    for _ in range(3):
        while not comm.Iprobe(source=MPI.ANY_SOURCE, tag=MPI.ANY_TAG):
            time.sleep(0.001)
        comm.Recv(bytearray(1))
        after += 1
    tell({"before": before, "after": after})
else:
    found = attempt(Comm(), wait=30)
    tell({}, "done")
    while not told((0,), "looked"):
        time.sleep(0.001)
    comm.Send(bytearray(1), dest=0, tag=TAG)
    tell(found)
"""


@pytest.fixture(scope="module")
def agreed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[int, Any]]:
    """Two jobs in which all goes well."""
    return [ranks_of(tmp_path_factory.mktemp("agree"), AGREE) for _ in range(2)]


def digests(ranks: dict[int, Any]) -> set[str]:
    return {hashlib.sha256(bytes.fromhex(ranks[rank]["secret"])).hexdigest() for rank in SILOS}


def told_by(ranks: dict[int, Any], rank: int) -> list[tuple[int, int, str]]:
    """Each message that a rank sent: to whom, with which tag, and what, in hexadecimal."""
    return ranks[rank]["sent"]


def test_all_silos_have_one_secret_and_each_job_another(agreed):
    first, second = map(digests, agreed)
    assert len(first) == len(second) == 1
    assert first != second
    assert {len(bytes.fromhex(ranks[rank]["secret"])) for ranks in agreed for rank in SILOS} == {32}


def test_nothing_reaches_the_server(agreed):
    for ranks in agreed:
        # the second number says that it does see what is sent to it
        assert ranks[SERVER] == {"before": 0, "after": 3}
        assert all(dest != SERVER for rank in SILOS for dest, *_ in ranks[rank]["sent"])


def secrets(ranks: dict[int, Any]) -> list[bytes]:
    """All that the silos of a job share, as they have it."""
    of_all = [ranks[rank]["secret"] for rank in SILOS]
    of_pairs = [secret for rank in SILOS for secret in ranks[rank]["pairs"].values()]
    return [bytes.fromhex(secret) for secret in of_all + of_pairs]


def test_each_pair_has_a_secret_that_is_like_no_other(agreed):
    for ranks in agreed:
        for rank in SILOS:
            others = {*SILOS} - {rank}
            assert {*ranks[rank]["pairs"]} == {*map(str, others)}
            for other in others:
                assert ranks[rank]["pairs"][str(other)] == ranks[other]["pairs"][str(rank)]
    found = {secret for ranks in agreed for secret in secrets(ranks)}
    assert len(found) == 2 * (1 + 3)
    assert {len(secret) for secret in found} == {32}


def seen(secret: bytes, messages: Iterable[bytes]) -> bool:
    """Whether a run of the secret's bytes is in a message."""
    runs = {secret[at : at + RUN] for at in range(len(secret) - RUN + 1)}
    return any(m[at : at + RUN] in runs for m in messages for at in range(len(m)))


def test_what_crosses_is_keys_and_sealed_secrets_and_nothing_of_a_secret(agreed):
    for ranks in agreed:
        sent = [
            (rank, dest, tag, len(m) // 2)
            for rank in SILOS
            for dest, tag, m in told_by(ranks, rank)
        ]
        keys = [(a, b, TAG, HELLO) for a in SILOS for b in SILOS if a != b]
        answers = [(LEADER, rank, TAG, ANSWER) for rank in SILOS[1:]]
        assert sorted(sent) == sorted(keys + answers)
        messages = [bytes.fromhex(m) for rank in SILOS for *_, m in told_by(ranks, rank)]
        for secret in secrets(ranks):
            assert not seen(secret, messages)
            assert seen(secret, [*messages, b"x" * 5 + secret[-RUN:]])


def test_no_key_nonce_or_sealed_secret_serves_twice(agreed):
    sent = [
        bytes.fromhex(m) for ranks in agreed for rank in SILOS for *_, m in told_by(ranks, rank)
    ]
    # each silo's own goes to both others
    assert len({m for m in sent if len(m) == HELLO}) == 2 * len(SILOS)
    answers = [m for m in sent if len(m) == ANSWER]
    assert len({m[:NONCE] for m in answers}) == len(answers) == 4
    assert len({m[NONCE:] for m in answers}) == 4


SILENT = """
silent, way = int(sys.argv[1]), sys.argv[2]
others = {1, 2, 3} - {silent}
if rank == silent and way != "silent":
    sending = [comm.Isend(bytearray(range(HELLO)), dest=other, tag=TAG) for other in others]
    if way == "half":  # it takes the keys in, and neither answers nor takes an answer in
        for other in others:
            comm.Recv(bytearray(HELLO), source=other, tag=TAG)
if rank in (0, silent):
    while not told(others):
        time.sleep(0.001)
    tell({})
else:
    tell(attempt(Comm(unread=way != "silent"), wait=2))
drain()
"""


@pytest.mark.parametrize("way", ["silent", "deaf", "half"])
@pytest.mark.parametrize("silent", [1, 3])
def test_a_silo_that_does_not_answer_is_named_in_time(tmp_path, silent, way):
    ranks = ranks_of(tmp_path, SILENT, str(silent), way)
    for rank in {*SILOS} - {silent}:
        found = ranks[rank]
        if (rank, silent, way) == (2, 3, "half"):
            assert found["secret"]  # the leader has answered it
            continue
        assert 2 <= found["seconds"] < 2 + SLACK
        assert found["worked"] < found["seconds"] / 2
        error = found["error"]
        assert f": rank {silent} did not answer within 2 seconds" in error
        assert "python -m fedml_keylock" in error
        assert "\n" not in error


SYNCHRONOUS = """
tell(attempt(Comm(unread=True), wait=20) if rank else {})
"""


def test_no_silo_waits_for_a_receiver_that_waits_for_it(tmp_path):
    assert len(digests(ranks_of(tmp_path, SYNCHRONOUS))) == 1


ALTERED = """
found = []
keys = [(source, HELLO, at) for source in (1, 3) for at in (0, 31, HELLO - 1)]
for flip in (*keys, *((1, ANSWER, at) for at in (0, 12, ANSWER - 1)), None):
    if rank:
        found.append(attempt(Comm(flip=flip if rank == 2 else None), wait=20))
    drain()
tell(found)
"""

SEALED = "rank 1 sent a secret not sealed for the keys that this rank has"
NO_KEY = "sent a public key that keeps no secret"


def test_one_altered_bit_is_refused_wherever_it_is(tmp_path):
    ranks = ranks_of(tmp_path, ALTERED)
    *altered, as_sent = ranks[2]
    assert len(altered) == 9
    for found in altered:
        assert SEALED in found["error"]
    assert as_sent["secret"]
    assert [x["secret"] for x in ranks[1]] == [x["secret"] for x in ranks[3]]
    assert as_sent["secret"] == ranks[3][-1]["secret"]


BAD_LEADER = """
import os
key = os.urandom(HELLO)
cases = [(key, os.urandom(ANSWER))]
cases += [(low, os.urandom(ANSWER)) for low in (bytes(HELLO), (1).to_bytes(HELLO, "little"))]
cases += [(key, os.urandom(size)) for size in (0, ANSWER - 1, 100_000)]
found = []
for messages in cases:
    if rank == 1:
        sending = [comm.Isend(bytearray(m), dest=s, tag=TAG) for m in messages for s in (2, 3)]
    elif rank:
        found.append(attempt(Comm(), wait=20))
    drain()
tell(found)
"""


def test_a_leader_that_sends_garbage_is_named(tmp_path):
    ranks = ranks_of(tmp_path, BAD_LEADER)
    sizes = [f"rank 1 sent {size} bytes, not {ANSWER}" for size in (0, ANSWER - 1, 100_000)]
    for rank in (2, 3):
        errors = [found["error"] for found in ranks[rank]]
        for error, words in zip(errors, [SEALED, *[f"rank 1 {NO_KEY}"] * 2, *sizes], strict=True):
            assert words in error
            assert "with the same YAML" in error
            assert "\n" not in error


SWAPPED = """
def swapped(call, silo):
    return lambda *rest, **named: call(*rest, **named | {silo: 5 - named[silo]})

through = Comm()
if rank == 1:
    # takes silo 2 for silo 3, when they ask or when it answers
    swaps = {"keys": {"Iprobe": "source", "Recv": "source"}, "answers": {"Isend": "dest"}}
    for method, silo in swaps[sys.argv[1]].items():
        setattr(through, method, swapped(getattr(through, method), silo))
tell(attempt(through, wait=20) if rank else {})
drain()
"""


@pytest.mark.parametrize("what", ["keys", "answers"])
def test_what_is_sealed_for_one_silo_does_not_open_for_another(tmp_path, what):
    ranks = ranks_of(tmp_path, SWAPPED, what)
    assert SEALED in ranks[2]["error"]
    assert SEALED in ranks[3]["error"]


FORGED = """
import os

class Forging(Comm):
    '''Has another public key for one silo than for the other.'''
    def Isend(self, buffer, dest, tag):
        forged = dest == 2 and len(buffer) == HELLO
        return super().Isend(os.urandom(HELLO) if forged else buffer, dest=dest, tag=tag)

tell(attempt((Forging if rank == int(sys.argv[1]) else Comm)(), wait=20) if rank else {})
drain()
"""


@pytest.mark.parametrize("forger", [1, 3])
def test_a_forged_public_key_is_refused(tmp_path, forger):
    ranks = ranks_of(tmp_path, FORGED, str(forger))
    assert SEALED in ranks[2]["error"]
    assert ranks[1]["secret"] == ranks[3]["secret"]


BAD_PEER = """
found = []
for key in (bytes(HELLO), (1).to_bytes(HELLO, "little"), b"", bytes(31), bytes(100_000)):
    if rank == 2:
        sending = [comm.Isend(bytearray(key), dest=silo, tag=TAG) for silo in (1, 3)]
    elif rank:
        found.append(attempt(Comm(), wait=20))
    drain()
tell(found)
"""


def test_a_silo_that_sends_garbage_is_named_and_gets_no_secret(tmp_path):
    ranks = ranks_of(tmp_path, BAD_PEER)
    sizes = [f"rank 2 sent {size} bytes, not {HELLO}" for size in (0, 31, 100_000)]
    for rank in (1, 3):
        for found, words in zip(ranks[rank], [f"rank 2 {NO_KEY}"] * 2 + sizes, strict=True):
            assert words in found["error"]
            assert {len(m) // 2 for *_, m in found["sent"]} == {HELLO}


def alone(rank: int, size: int) -> Any:
    """A communicator that nothing can be sent through."""
    group = SimpleNamespace(Incl=lambda ranks: None)
    return SimpleNamespace(
        Get_rank=lambda: rank,
        Get_size=lambda: size,
        Get_group=lambda: group,
        Create_group=lambda group, tag: None,
    )


def test_a_silo_without_others_draws_its_secret():
    first, second = agree(alone(1, 2), Handshake(1)), agree(alone(1, 2), Handshake(1))
    assert len(first.group) == len(second.group) == 32
    assert first.group != second.group
    assert first.pairs == {}
    assert len(agree(alone(0, 2), Handshake(0), server=1).group) == 32


def test_nothing_of_it_is_shown():
    shown = repr(JobSecrets(b"all", 1, {2: b"two"}, {2: 7}))
    assert shown == "JobSecrets(silo=1, samples={2: 7}, transcript=b'')"


@pytest.mark.parametrize("server", [0, 1])
def test_the_server_gets_none(server):
    with pytest.raises(HostError, match=f"rank {server} is the server's"):
        agree(alone(server, 2), Handshake(server), server=server)


def test_all_silos_have_seen_the_same(agreed):
    found = [{ranks[rank]["transcript"] for rank in SILOS} for ranks in agreed]
    assert [len(one) for one in found] == [1, 1]
    assert found[0] != found[1]


EXCHANGE = """
if rank == 0:
    status, seen = MPI.Status(), 0
    while not told((1, 2, 3), "done"):
        seen += comm.Iprobe(source=MPI.ANY_SOURCE, tag=MPI.ANY_TAG)
        time.sleep(0.0005)
    tell({"seen": seen})
else:
    agreed, found, seen = agree(comm, Handshake(rank), wait=30), [], 0
    for index in range(3):
        if rank == 1 + index:
            time.sleep(0.3)  # the others wait for it
        messages = {o: f"{index}: {agreed.silo} to {o}".encode() for o in agreed.pairs}
        came = agreed.exchange(messages, lambda: None)
        found.append({silo: message.decode() for silo, message in came.items()})
        # what FedML's receiver looks for is not among it
        seen += comm.Iprobe(source=MPI.ANY_SOURCE, tag=MPI.ANY_TAG)
    error = ""
    try:
        odd = b"longer" if rank == 3 else b"short"
        agreed.exchange(dict.fromkeys(agreed.pairs, odd), lambda: None)
    except HostError as refused:
        error = str(refused)
    tell({}, "done")
    tell({"found": found, "seen": seen, "error": error})
drain()
"""


def test_silos_reach_one_another_past_the_server_and_its_receiver(tmp_path):
    ranks = ranks_of(tmp_path, EXCHANGE)
    assert [ranks[rank]["seen"] for rank in range(4)] == [0, 0, 0, 0]
    for rank in SILOS:
        own = rank - 1
        for index, came in enumerate(ranks[rank]["found"]):
            others = {0, 1, 2} - {own}
            assert came == {str(silo): f"{index}: {silo} to {own}" for silo in others}
    # a silo is called by its rank in the job
    assert "rank 3 sent 6 bytes, not 5" in ranks[1]["error"]
    assert "rank 3 sent 6 bytes, not 5" in ranks[2]["error"]
    assert "sent 5 bytes, not 6" in ranks[3]["error"]


def test_its_import_costs_nothing():
    script = (
        "import sys, fedml_keylock.host.key_agreement\nprint({'fedml', 'mpi4py'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "set()\n"
