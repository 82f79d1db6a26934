"""A server that lies to the silos of a sealed job: it ends on every rank, and nothing is loaded.

The lies are told below our checks on the server: whoever lies does not run them. Which sums are
none is in locks/sealed/test_sealed_verification.py.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml
from job_harness import config, run_line

from fedml_keylock.host.launch import command

HERE = Path(__file__).parent
SILOS, ROUNDS = 3, 3
WITHIN = 90
"""Seconds for the whole job, of which it takes most to start, on a busy machine too."""

NO_SUM = "the average is not the sum of what the silos sent in this round"
NO_AVERAGE = "the server sent a model that is no average of the silos'"
LIES = {
    # case, round: what is said, and of which round
    ("other", 0): ("has received another model than silo", 0),
    ("other", 1): (NO_AVERAGE, 1),
    ("shifted_one", 2): (NO_SUM, 2),
    ("stale", 1): (NO_SUM, 1),
    ("subset", 2): (NO_SUM, 2),
    ("again", 0): (NO_AVERAGE, 0),
    ("again", 2): (NO_AVERAGE, 2),
    ("unread", 2): ("the server ends the job after 2 of 3 rounds", 2),
    ("anew", 2): ("the server asks for a round beyond the 3 of the job", 0),
    ("finish", 1): ("the server ends the job after 1 of 3 rounds", 1),
    ("finish", 2): ("the server ends the job after 2 of 3 rounds", 2),
}
QUICK = {("other", 0), ("subset", 2), ("finish", 1)}


@pytest.fixture
def run(tmp_path, monkeypatch):
    def run(case, round_index=0, in_total=SILOS, **settings):
        for name in ("lying_job.py", "job_parts.py", "job_recorder.py"):
            shutil.copy(HERE / name, tmp_path)
        numbers = {"worker_num": SILOS, "client_num_per_round": SILOS}
        numbers["client_num_in_total"] = in_total
        sections = config(settings, comm_round=ROUNDS, **numbers)
        (tmp_path / "fedml_config.yaml").write_text(yaml.safe_dump(sections))
        monkeypatch.setenv("JOB_ROUND", str(round_index))
        line = command(SILOS + 1, ["lying_job.py", "--cf", "fedml_config.yaml"])
        return run_line(line, tmp_path, ranks=SILOS + 1, case=case)

    return run


def loaded(job, rank):
    """The models that a silo's trainer was given, each by the sum of its weights."""
    path = job.folder / f"loaded-{rank}"
    return path.read_text().splitlines() if path.exists() else []


def uploads(job, rank):
    return sum(message["model"] for message in job.messages(rank))


@pytest.mark.parametrize(
    ("case", "round_index"),
    [lie if lie in QUICK else pytest.param(*lie, marks=pytest.mark.long) for lie in LIES],
)
def test_a_lie_ends_the_job_in_one_line_and_nothing_is_loaded(case, round_index, run):
    words, named = LIES[case, round_index]
    job = run(case, round_index)
    assert job.status != 0
    assert job.seconds < WITHIN
    # each silo that met it may say it
    assert 1 <= len(job.ours) <= SILOS, job.output[-3000:]
    for line in job.ours:
        assert words in line, job.output[-3000:]
        assert re.search(rf"\bround {named}: ", line), line
    assert "Traceback" not in job.output
    silos = range(1, SILOS + 1)
    if (case, round_index) == ("other", 0):  # there is nothing to compare a first model with
        assert all(uploads(job, rank) == 0 for rank in silos)
        return
    # FedML's trainer is given the first model, and each average
    victims = [2] if case in ("other", "shifted_one") else () if case == "anew" else silos
    for rank in silos:
        known = loaded(job, rank)
        truth = round_index + 1 if rank in victims else round_index + 2
        assert truth - (rank not in victims) <= len(known) <= truth, rank
        assert known == loaded(job, max(silos, key=lambda r: len(loaded(job, r))))[: len(known)]
        assert uploads(job, rank) == round_index + 1


@pytest.mark.long
def test_a_server_that_gives_one_silo_s_data_to_two_ranks_ends_the_job(run):
    """Where silos take turns, the sum would be mostly that silo's."""
    job = run("seat", 0, in_total=5)
    assert job.status != 0
    assert len(job.ours) == 1, job.output[-3000:]
    assert "rank 2: " in job.ours[0]
    assert "by FedML's own choice it works for silo" in job.ours[0]
    assert uploads(job, 2) == 1


@pytest.mark.long
def test_a_job_whose_server_tells_the_truth_ends_well(run):
    """The control."""
    job = run("")
    assert job.status == 0, job.output[-3000:]
    assert {len(loaded(job, rank)) for rank in (1, 2, 3)} == {ROUNDS + 1}
    assert "the first model is this silo's own" in job.output


@pytest.mark.long
@pytest.mark.parametrize("pinned", [None, "own"])
def test_another_first_model_is_warned_of_and_refused_where_it_is_pinned(pinned, run):
    job = run("first", **({"first_model": pinned} if pinned else {}))
    said = "the first model is not the one that this silo built"
    if pinned is None:
        assert job.status == 0, job.output[-3000:]
        assert job.output.count(said) == SILOS
        digest = re.search(r"pin it by keylock: {first_model: ([0-9a-f]{64})}", job.output)
        assert digest
        return
    assert job.status != 0
    assert 1 <= len(job.ours) <= SILOS, job.output[-3000:]
    for line in job.ours:
        assert "round 0: the server's first model (" in line
        assert "is not what keylock.first_model asks for (own)" in line
    assert not any(loaded(job, rank) for rank in (1, 2, 3))
    assert not any(uploads(job, rank) for rank in (1, 2, 3))
