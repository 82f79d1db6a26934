"""Whatever breaks ends on all ranks with one line, and a job started again goes on from its vaults.

Each is a real job. test_jobs.py has NaN, wrong shapes, extra names and a silo without the plugin.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from job_harness import config, run_line
from job_parts import Net
from safetensors.torch import load_file

from fedml_keylock.host.launch import command
from fedml_keylock.locks import KeyLockConfig, load_private_state_dict, lock_model
from fedml_keylock.locks.vault.file import Stored

HERE = Path(__file__).parent
LOCK = {"lock": "paper", "key_length": 64}
ENDS_WITHIN = 30
"""Seconds from the fault to the end of the job on every rank."""
LIMIT = 120


@dataclass(frozen=True)
class Fault:
    """What breaks, how the job is started, and what is said then."""

    words: Sequence[str]
    own: Mapping[str, Any] | None = None
    disk: bool = False
    cli: bool = False
    vault: str = "keylock_vault"
    trained: int = 1
    """Rounds that silo 1 had trained, by its vault."""
    uploads: int = 1
    """Updates that silo 1 had handed to MPI."""


KILLED = "it was killed (signal 9, SIGKILL"
FAULTS = {
    "killed_in_training": Fault(
        ["rank 2: silo 1 (rank 2), round 1: while training", KILLED, "silos' vaults"], cli=True
    ),
    "killed_in_upload": Fault(
        ["rank 2: silo 1 (rank 2), round 1: while uploading", KILLED], trained=2, uploads=2
    ),
    "killed_between_rounds": Fault(
        ["rank 2: silo 1 (rank 2), round 1: while waiting for the server", KILLED],
        trained=2,
        uploads=2,
    ),
    "server_killed": Fault(
        ["rank 0: the server, round 1: while collecting updates", KILLED], trained=2, uploads=2
    ),
    "full_disk": Fault(
        ["rank 2: silo 1 (rank 2), round 1: vault disk/vault/", "No space left on device"],
        own={"vault": "disk/vault"},
        disk=True,
        vault="disk-after/vault",
    ),
    "lost_vault": Fault(
        ["rank 2: silo 1 (rank 2), round 1: vault own_vault", "File exists"],
        own={"vault": "own_vault"},
        vault="moved_vault",
    ),
    "other_key_length": Fault(
        ["rank 2 (silo 1), round 0: its settings differ", "same YAML"],
        own={"key_length": 128},
        trained=0,
        uploads=0,
    ),
    "other_layers": Fault(
        ["rank 2 (silo 1), round 0: its locked layers differ", "same YAML"],
        own={"layers": "all"},
        trained=0,
        uploads=0,
    ),
    "other_model": Fault(
        ["rank 2 (silo 1), round 0: its model differ", "same YAML and code"], trained=0, uploads=0
    ),
    "unlocked": Fault(["the model was unlocked", "round 1", "is not sent", "unlock_model"]),
    "replayed": Fault(
        ["rank 2 (silo 1), round 1: it sent the update of round 0 again"], trained=2, uploads=2
    ),
}
LONGER = {"comm_round": 10, "epochs": 2}
QUICK = {"killed_in_training", "full_disk"}


def on_small_disk(line: Sequence[str], folder: Path) -> list[str]:
    """Run a command with a file system of 64 KB at ./disk, which is copied when it has ended."""
    (folder / "disk").mkdir()
    mounting = "mount -t tmpfs -o size=64k,mode=700 none disk"
    script = f'{mounting} && "$@"; status=$?; cp -rp disk disk-after; exit $status'
    for unshare in (["unshare", "-m"], ["unshare", "-rm"]):
        tried = subprocess.run(
            [*unshare, "sh", "-c", mounting], cwd=folder, capture_output=True, check=False
        )
        if tried.returncode == 0:
            return [*unshare, "sh", "-c", script, "sh", *line]
    pytest.skip("no file system can be mounted here")


def run(folder: Path, case: str, *, fault: Fault | None = None, **changes: Any):
    """Run fault_job.py in a folder."""
    settings = changes.pop("settings", LOCK)
    for name in ("fault_job.py", "job_parts.py", "job_recorder.py"):
        shutil.copy(HERE / name, folder)
    sections = config(settings, **{"comm_round": 3, "learning_rate": 0.05} | changes)
    (folder / "fedml_config.yaml").write_text(yaml.safe_dump(sections))
    if fault is not None and fault.own is not None:
        sections["defense_args"]["keylock"] |= fault.own
        (folder / "fedml_config-2.yaml").write_text(yaml.safe_dump(sections))
    job = ["fault_job.py", "--cf", "fedml_config.yaml"]
    line = command(3, job)
    if fault is not None and fault.cli:
        cli = "from fedml_keylock.cli import main; main()"
        line = [sys.executable, "-c", cli, "run", "-n", "3", *job]
    if fault is not None and fault.disk:
        line = on_small_disk(line, folder)
    return run_line(line, folder, case=case)


def assert_vaults_can_be_read(folder: Path) -> list[Stored]:
    """Every vault's file is whole, and nothing half written lies beside it."""
    found = sorted(folder.glob("silo-*.safetensors"))
    assert [path.name for path in folder.glob("*.tmp")] == []
    stored = [Stored.read(path) for path in found]
    for one in stored:
        assert one.state(None)
    return stored


@pytest.mark.parametrize(
    "case", [c if c in QUICK else pytest.param(c, marks=pytest.mark.long) for c in FAULTS]
)
def test_a_fault_ends_the_job_in_one_line(case, tmp_path):
    fault = FAULTS[case]
    job = run(tmp_path, case, fault=fault)
    ended = time.time()
    assert job.status != 0
    assert ended - float((tmp_path / "fault").read_text()) < ENDS_WITHIN
    assert len(set(job.ours)) == 1, job.output[-3000:]
    for word in fault.words:
        assert word in job.ours[0]
    assert "Traceback" not in job.output
    sent = [m for m in job.messages(2) if m["model"]]
    assert len(sent) == fault.uploads
    own = {one.silo: one for one in assert_vaults_can_be_read(tmp_path / fault.vault)}
    assert own[1].round_index == fault.trained
    if (tmp_path / "keylock_vault").is_dir():
        assert_vaults_can_be_read(tmp_path / "keylock_vault")


@pytest.mark.long
def test_a_silo_with_another_lock_ends_a_sealed_job(tmp_path):
    words = ["rank 2 (silo 1), round 0: its settings differ", "same YAML"]
    fault = Fault(words, own={"lock": "rotated"})
    job = run(tmp_path, "other_lock", settings={}, fault=fault)
    assert job.status != 0
    assert time.time() - float((tmp_path / "fault").read_text()) < ENDS_WITHIN
    assert len(set(job.ours)) == 1, job.output[-3000:]
    assert all(word in job.ours[0] for word in words)
    assert not any(m["model"] for rank in (1, 2) for m in job.messages(rank))


SEALED = {
    "killed_in_training": Fault(FAULTS["killed_in_training"].words, cli=True),
    "full_disk": Fault(
        ["rank 2: silo 1 (rank 2), round 1: vault disk/vault/", "No space left on device"],
        own={"vault": "disk/vault", "keep_history": True},
        disk=True,
        vault="disk-after/vault",
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("case", SEALED)
def test_a_fault_ends_a_sealed_job_in_one_line_with_whole_files(case, tmp_path):
    fault = SEALED[case]
    job = run(tmp_path, case, settings={"checkpoint": "global.safetensors"}, fault=fault)
    assert job.status != 0
    assert time.time() - float((tmp_path / "fault").read_text()) < ENDS_WITHIN
    assert len(set(job.ours)) == 1, job.output[-3000:]
    assert all(word in job.ours[0] for word in fault.words)
    assert "Traceback" not in job.output
    assert_vaults_can_be_read(tmp_path / fault.vault)
    assert load_file(tmp_path / "global.safetensors")
    assert not [*tmp_path.rglob("*.tmp")]


@pytest.mark.long
@pytest.mark.parametrize("field", ["checkpoint", "save_model"])
def test_what_could_not_be_written_in_the_end_ends_a_job_before_it_trains(field, tmp_path):
    (tmp_path / "in the way").write_text("")
    job = run(tmp_path, "", settings={field: "in the way/global.safetensors"})
    assert job.status != 0
    assert len(set(job.ours)) == 1, job.output[-3000:]
    assert f"keylock.{field}: in the way/global.safetensors" in job.ours[0]
    assert "cannot be written" in job.ours[0]
    assert not any(m["model"] for rank in (1, 2) for m in job.messages(rank))


@pytest.mark.long
@pytest.mark.parametrize("settings", [LOCK, LOCK | {"layers": "all"}])
def test_a_killed_job_started_again_learns_as_if_nothing_had_happened(
    settings, tmp_path, monkeypatch
):
    """FedML begins again at round 0 with a fresh model; the silos' locks go on where they were."""
    settings = {**settings, "keep_history": True}
    folders = {name: tmp_path / name for name in ("undisturbed", "killed")}
    for folder in folders.values():
        folder.mkdir()
    undisturbed = run(folders["undisturbed"], "", settings=settings, **LONGER)
    assert undisturbed.status == 0, undisturbed.output[-3000:]
    # the same locks to begin with: two draws of a lock differ by as much as is looked for here
    folder = folders["killed"]
    vault = folder / "keylock_vault"
    vault.mkdir(mode=0o700)
    for silo in (0, 1):
        first = undisturbed.folder / "keylock_vault" / f"silo-{silo}" / "round-00000.safetensors"
        shutil.copy(first, vault / f"silo-{silo}.safetensors")
    monkeypatch.setenv("JOB_ROUND", "2")
    killed = run(folder, "killed_in_training", settings=settings, **LONGER)
    assert killed.status != 0
    assert "round 2: while training" in killed.ours[0]
    kept = [one.state(None) for one in assert_vaults_can_be_read(vault)]
    again = run(folder, "", settings=settings, **LONGER)
    assert again.status == 0, again.output[-3000:]
    for silo, state in enumerate(kept):
        began = load_file(vault / f"silo-{silo}" / "round-00000.safetensors")
        assert all(torch.equal(began[name], tensor) for name, tensor in state.items())
    reached, other = (accuracies(job, settings) for job in (undisturbed, again))
    assert min(reached) > 0.9
    for one, two in zip(reached, other, strict=True):
        assert abs(one - two) < 0.01, (reached, other)


def accuracies(job, settings) -> list[float]:
    """What the server's last model classifies rightly under each silo's own lock, of 1,000."""
    from fault_job import samples

    public = [m["model_params"] for m in job.decoded(0) if "model_params" in m][-1]
    images, labels = samples(1000, seed=99).tensors
    right = []
    for silo in (0, 1):
        model = Net()
        lock_model(model, KeyLockConfig.from_mapping(settings))
        private = load_file(job.folder / "keylock_vault" / f"silo-{silo}.safetensors")
        load_private_state_dict(model, private)
        model.load_state_dict(public)
        model.eval()
        with torch.no_grad():
            right.append(float((model(images).argmax(1) == labels).float().mean()))
    return right
