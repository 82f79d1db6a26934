"""What crosses MPI in a whole job: nothing private, and no more bytes than without the defense."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from job_parts import Net
from safetensors.torch import load_file

from fedml_keylock.evaluation.capture import Capture
from fedml_keylock.locks import KeyLockConfig, load_private_state_dict, lock_model, secret_variables

LOCK = {"lock": "paper", "layers": "all", "key_length": 64, "keep_history": True}


@pytest.fixture(scope="session")
def plain(run_job):
    job = run_job(settings=None)
    assert job.status == 0, job.output[-2000:]
    return job


@pytest.fixture(scope="session")
def locked(run_job):
    job = run_job(
        settings=LOCK,
        enable_attack=True,
        attack_type="gradient_inversion",
        gradient_inversion={
            "attacks": {"inverting_gradients": {"steps": 50}, "dlg": {"steps": 1}},
            "knowledge": ["adaptive", "temporal"],
            "images": 3,
        },
    )
    assert job.status == 0, job.output[-2000:]
    return job


def private_arrays(job):
    """Every private array that the job's silos had at the start of a round, or at the end."""
    found = {}
    for path in sorted((job.folder / "keylock_vault").rglob("*.safetensors")):
        state = load_file(path)
        model = Net()
        lock_model(model, KeyLockConfig.from_mapping(LOCK))
        load_private_state_dict(model, state)
        where = str(path.relative_to(job.folder))
        found |= {(where, name): tensor for name, tensor in state.items()}
        found |= {(where, name): tensor for name, tensor in secret_variables(model).items()}
    return found


def windows(data: bytes) -> np.ndarray:
    """Every run of eight bytes, at any offset, as a number."""
    usable = [data[k : k + (len(data) - k) // 8 * 8] for k in range(8)]
    return np.concatenate([np.frombuffer(part, dtype=np.uint64) for part in usable])


def runs_of(tensor) -> np.ndarray:
    """Runs of two neighbouring float32 numbers, without those that hold 0 or 1."""
    flat = tensor.float().flatten().numpy()
    pairs = np.stack([flat[:-1], flat[1:]], 1)
    pairs = pairs[~np.isin(pairs, (0.0, 1.0)).any(1)]
    return np.ascontiguousarray(pairs).view(np.uint64).ravel()


def assert_kept(arrays, crossed: bytes):
    """Nothing of the private arrays is among the bytes that crossed."""
    sent = windows(crossed)
    for (where, name), tensor in arrays.items():
        if tensor.numel() > 1:
            assert not np.isin(runs_of(tensor), sent).any(), f"{name} of {where} was sent"


def test_no_private_bytes_cross_the_wire(locked):
    arrays = private_arrays(locked)
    kinds = {name.rsplit(".", 1)[1] for _, name in arrays}
    assert {"key", "weight_gamma", "bias_beta", "gamma", "beta", "running_var"} <= kinds
    # two silos, each at the start of two rounds and at the end
    assert len({where for where, _ in arrays}) == 6
    assert_kept(arrays, locked.wire())


def test_the_search_finds_what_is_sent(locked):
    """Control: public weights did cross, and the same search sees them."""
    from safetensors.torch import save  # the bytes of a private array, as a leak would send them

    path = next((locked.folder / "keylock_vault").glob("silo-0.safetensors"))
    key = load_file(path)["1.keylock.key"]
    leaked = locked.wire() + b"x" + save({"k": key})
    assert np.isin(runs_of(key), windows(leaked)).all()


def test_the_capture_is_what_crossed_the_wire(locked):
    capture = Capture.open(locked.folder / "leakage" / "capture")
    assert capture.rounds() == [0, 1]
    sent = [m["model_params"] for m in locked.decoded(0) if "model_params" in m]
    # FedML sends the first model to each silo several times, and then to two silos a round
    began = [sent[0], sent[-4]]
    for update in capture.updates():
        uploads = [
            m["model_params"] for m in locked.decoded(update.silo + 1) if "model_params" in m
        ]
        for name, tensor in update.before.items():
            assert torch.equal(tensor, began[update.round][name])
        for name, tensor in update.after.items():
            assert torch.equal(tensor, uploads[update.round][name])
    assert all(torch.equal(t, sent[-1][n]) for n, t in capture.final().items())
    assert capture.meta["layers"] == ["0", "3"]


def test_the_server_attacks_what_it_captured(locked):
    # as the YAML sets each attack, at each level that it can use: dlg cannot pool rounds
    for trial in ("inverting_gradients-adaptive", "inverting_gradients-temporal", "dlg-adaptive"):
        made = load_file(locked.folder / "leakage" / f"{trial}.safetensors")
        assert made["images"].shape == (3, 1, 1, 8, 8)
        assert made["cost"].isfinite().all()
        assert f"{trial.replace('-', ', ')}: cost reached" in locked.output
    assert not (locked.folder / "leakage" / "dlg-temporal.safetensors").exists()


def test_flag_off_is_plain_fedml(plain, run_job):
    """The same job, with and without the plugin, says the same when the flag is off."""
    without = run_job(settings=None, plugin=False)
    assert without.status == 0
    for rank in (0, 1, 2):
        ours, theirs = plain.decoded(rank), without.decoded(rank)
        # FedML repeats its first messages as often as ranks happen to greet each other
        assert {tuple(m) for m in ours} == {tuple(m) for m in theirs}
        for index in (0, -1):
            mine, other = ([m for m in x if "model_params" in m][index] for x in (ours, theirs))
            for key, value in mine.items():
                if key == "model_params":
                    assert list(value) == list(other[key])
                    assert all(torch.equal(value[n], other[key][n]) for n in other[key])
                else:
                    assert value == other[key]


def test_uploads_are_no_larger_than_without(plain, locked):
    for rank in (1, 2):
        sent = [sum(m["bytes"] for m in job.messages(rank)) for job in (plain, locked)]
        assert sent[1] <= sent[0], f"rank {rank} uploads {sent[1]} bytes, and {sent[0]} unlocked"
        assert [m["model"] for m in locked.messages(rank)].count(True) == 2


def test_no_loss_of_a_batch_leaves_a_silo(plain, locked):
    """FedML's trainers log it, and mpiexec carries it to the server's host: it tells the label."""
    said = re.compile(r"Epoch: \d+\s+Loss: \d")
    assert said.search(plain.output)  # the control
    assert not said.search(locked.output)


def test_every_silo_has_a_lock_of_its_own(locked):
    states = [load_file(locked.folder / "keylock_vault" / f"silo-{s}.safetensors") for s in (0, 1)]
    for name in ("1.keylock.key", "1.keylock.weight_gamma", "3.keylock.bias_beta"):
        assert not np.allclose(states[0][name], states[1][name])


@pytest.mark.long  # of locks without a job test_secrets.py says so
def test_locks_are_not_those_of_another_run_with_the_same_seed(locked, run_job):
    again = run_job(settings=LOCK, comm_round=1)
    for silo in (0, 1):
        first, second = (
            load_file(job.folder / "keylock_vault" / f"silo-{silo}" / "round-00000.safetensors")
            for job in (locked, again)
        )
        assert not np.allclose(first["1.keylock.key"], second["1.keylock.key"])


def test_locks_are_trained_and_kept(locked):
    folder = locked.folder / "keylock_vault"
    start = load_file(folder / "silo-0" / "round-00000.safetensors")
    end = load_file(folder / "silo-0.safetensors")
    for name in ("weight_gamma", "bias_gamma", "bias_beta"):
        assert not np.allclose(start[f"3.keylock.{name}"], end[f"3.keylock.{name}"])
    assert np.allclose(start["3.keylock.key"], end["3.keylock.key"])
    assert (folder / "silo-0.safetensors").stat().st_mode & 0o777 == 0o600
