"""Jobs under noise of `unit: example`, on real digits: they train as without it, but for noise."""

from __future__ import annotations

from pathlib import Path

import example_job
import pytest
import torch
from safetensors.torch import load_file
from test_matrix import SIMULATED, ended
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

pytestmark = pytest.mark.long
HERE = Path(__file__).parent
ROUNDS, RATE, CLIP = 4, 0.5, 0.8
THREE = dict.fromkeys(("worker_num", "client_num_in_total", "client_num_per_round"), 3)


@pytest.fixture
def run(run_script):
    def job(case, *, noise, ranks=4, save_model="final", **changes):
        settings = {
            "colluders": 1,
            "save_model": save_model,
            "noise": {"unit": "example", "clip": CLIP, "delta": 1e-5, **noise},
        }
        changes = {"comm_round": ROUNDS, "learning_rate": RATE, **THREE, **changes}
        script = HERE / "example_job.py"
        return run_script(case, script.name, [script], settings, ranks=ranks, **changes)

    return job


def finals(job):
    """Each silo's final model, all of which are one."""
    found = [load_file(path) for path in sorted((job.folder / "final").glob("silo-*.safetensors"))]
    assert len(found) == 3
    assert all(torch.equal(found[0][n], other[n]) for other in found for n in found[0])
    return found


def accuracy(state):
    images, labels = example_job.digits(3)[1]
    model = example_job.net()
    model.load_state_dict(state)
    return float((model(images).argmax(1) == labels).float().mean())


def simulated():
    """What FedAvg makes of it without noise, if every batch is the silo's whole data."""
    model, (parts, _) = example_job.net(), example_job.digits(3)
    images, labels = (torch.cat(column) for column in zip(*parts, strict=True))

    def loss(state, image, label):
        return cross_entropy(functional_call(model, state, (image[None],)), label[None])

    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    model = model.double()
    for _ in range(ROUNDS):
        each = vmap(grad(loss), (None, 0, 0))(state, images.double(), labels)
        norm = sum(g.flatten(1).square().sum(1) for g in each.values()).sqrt()
        assert (norm > CLIP).any()  # the clip has something to do
        factor = (CLIP / norm).clamp(max=1)
        for name, gradient in each.items():
            mean = torch.einsum("b,b...->...", factor, gradient) / len(images)
            state[name] = state[name] - RATE * mean
    return state


ONE = SIMULATED | {"backend": "sp", "worker_num": 1, "ranks": 1, "save_model": None}
JOBS = {"loaders": {}, "lists": {}, "own": {}, "one": ONE}


@pytest.mark.parametrize("case", JOBS)
def test_a_job_of_one_step_a_round_is_its_simulation_without_noise_but_for_noise(case, run):
    job = ended(run(case, noise={"multiplier": 1e-4, "rate": 1.0}, **JOBS[case]))
    state = torch.load(job.folder / "one.pt") if JOBS[case] is ONE else finals(job)[0]
    for name, tensor in simulated().items():
        torch.testing.assert_close(state[name].double(), tensor, rtol=0.0, atol=4e-6)


def test_a_job_of_several_steps_of_any_optimizer_learns(run):
    noise = {"multiplier": 0.6, "rate": 0.2, "steps": 3, "clip": 1.0}
    more = {"client_optimizer": "adam", "learning_rate": 0.01, "weight_decay": 1e-4}
    job = ended(run("steps", noise=noise, comm_round=10, **more))
    assert accuracy(finals(job)[0]) > 0.75
    said = (job.folder / "keylock_vault" / "silo-1.log").read_text()
    assert "round 9: 3 steps by batches of about" in said


def test_ranks_that_serve_silo_after_silo_draw_from_each_its_own(run):
    more = {"client_num_in_total": 5, "comm_round": 15, "learning_rate": 2.0}
    job = ended(run("turns", noise={"multiplier": 0.3, "rate": 0.3}, **more))
    assert accuracy(finals(job)[0]) > 0.6


def test_fedmls_mpi_simulation_is_given_secret_batches_too(run):
    simulated = SIMULATED | {"client_num_in_total": 5, "save_model": None}
    job = ended(run("simulated", noise={"multiplier": 1.0, "rate": 0.1}, **simulated))
    logs = [path.read_text() for path in (job.folder / "keylock_vault").glob("silo-*.log")]
    assert sum(log.count("1 step by batches of about 2") for log in logs) == 3 * ROUNDS


def test_a_job_of_two_epochs_ends_in_one_line(run):
    job = run("epochs", noise={"multiplier": 1.0, "rate": 0.1}, epochs=2)
    assert job.status != 0
    said = "the trainer takes a step beyond the 1 of a round that keylock.noise.steps declares: set"
    assert job.ours
    assert all(f"keylock.noise: unit: example: {said} epochs: 1" in line for line in job.ours)
