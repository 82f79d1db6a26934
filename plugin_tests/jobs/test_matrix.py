"""Every kind of job, and what of FedML's own runs beside the lock in it."""

from __future__ import annotations

import re
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from job_parts import Net, load
from safetensors.torch import load_file
from test_wire import LOCK, assert_kept, private_arrays

from fedml_keylock.evaluation.capture import Capture
from fedml_keylock.host.compatibility import ROBUST_AGGREGATIONS

SETTINGS = {
    "anomaly_detection": {"cosine_similarity_bound": 0.3},
    "cclip": {"bucket_size": 1},
    "crfl": {"clip_threshold": 50.0, "sigma": 0.01},
    "geo_median": {"byzantine_client_num": 1, "batch_num": 3},
    "krum": {"byzantine_client_num": 0},
    "multikrum": {"byzantine_client_num": 0, "krum_param_m": 1},
    "norm_diff_clipping": {"norm_bound": 5.0},
    "slsgd": {"trim_param_b": 1, "alpha": 0.5, "option_type": 2},
    "trimmed_mean": {"beta": 0.34},
}
"""What FedML's defenses read of `defense_args`; those that are missing read nothing."""

NOISE = {"enable_dp": True, "epsilon": 0.9, "delta": 0.01, "sensitivity": 0.01}
BYZANTINE = {"enable_attack": True, "attack_type": "byzantine", "byzantine_client_num": 1}
CONSTANTS = {"1.weight": 1, "1.bias": 0, "1.running_mean": 0, "1.running_var": 1}


def models(job, rank):
    """The models that a rank sent, in order."""
    return [m["model_params"] for m in job.decoded(rank) if "model_params" in m]


def ended(job):
    assert job.status == 0, job.output[-3000:]
    return job


def assert_nothing_private_was_sent(job):
    arrays = private_arrays(job)
    assert arrays
    assert_kept(arrays, job.wire())


def assert_constants(state):
    for name, constant in CONSTANTS.items():
        assert (state[name] == constant).all(), name


@pytest.mark.long
def test_krum_chooses_among_locked_updates(run_job):
    job = ended(
        run_job(settings=LOCK | {"robust_aggregation": "krum"}, ranks=4, **SETTINGS["krum"])
    )
    uploads = [models(job, rank) for rank in (1, 2, 3)]
    for index, made in enumerate((models(job, 0)[-4], models(job, 0)[-1])):
        # the average of one is that one
        same = [
            all(torch.equal(u[index][n].float(), t.float()) for n, t in made.items())
            for u in uploads
        ]
        assert sum(same) == 1


@pytest.mark.long
def test_local_noise_is_on_public_state_only(run_job):
    job = ended(
        run_job(
            settings=LOCK | {"robust_aggregation": "rfa"},
            dp_solution_type="ldp",
            mechanism_type="gaussian",
            **NOISE,
        )
    )
    assert_nothing_private_was_sent(job)
    began = models(job, 0)[0]
    for rank in (1, 2):
        upload = models(job, rank)[0]
        assert_constants(upload)
        # a step of SGD at this rate is far below the noise of scale 0.03
        assert (upload["9.weight"] - began["9.weight"]).std() > 0.02


def test_noise_and_an_attack_on_the_server_leave_constants_and_locks(run_job):
    job = ended(
        run_job(
            settings=LOCK | {"robust_aggregation": "crfl"},
            dp_solution_type="cdp",
            mechanism_type="laplace",
            attack_mode="random",
            **NOISE,
            **BYZANTINE,
            **SETTINGS["crfl"],
        )
    )
    assert_nothing_private_was_sent(job)
    began, *_, last = models(job, 0)
    assert_constants(last)
    assert not torch.allclose(began["9.weight"].double(), last["9.weight"].double())
    assert last["9.weight"].dtype == torch.float64  # FedML's Laplace noise is


ASSIGNED = [{1: 2, 2: 1}, {1: 2, 2: 1}, {1: 0, 2: 2}, {1: 2, 2: 1}, {1: 1, 2: 0}]
"""Round by round, which silo FedML gives each rank; its seed is the number of the round before."""


def test_a_lock_follows_its_silo_from_rank_to_rank(run_job):
    job = ended(
        run_job(
            "silos",
            settings=LOCK,
            client_num_in_total=3,
            comm_round=5,
            enable_attack=True,
            attack_type="gradient_inversion",
            gradient_inversion={"when": "never", "rounds": [0, 1, 2, 3, 4]},
        )
    )
    assert_nothing_private_was_sent(job)
    for rank in (1, 2):
        samples = [m["num_samples"] for m in job.decoded(rank) if "model_params" in m]
        assert samples == [[24, 32, 40][assigned[rank]] for assigned in ASSIGNED]
    folder = job.folder / "keylock_vault"
    for silo in range(3):
        rounds = [index for index, assigned in enumerate(ASSIGNED) if silo in assigned.values()]
        files = sorted((folder / f"silo-{silo}").glob("*.safetensors"))
        assert [path.stem for path in files] == [f"round-{index:05d}" for index in rounds]
        states = [load_file(path) for path in (*files, folder / f"silo-{silo}.safetensors")]
        for before, after in pairwise(states):
            assert torch.equal(before["1.keylock.key"], after["1.keylock.key"])
            assert not torch.equal(before["1.keylock.bias_gamma"], after["1.keylock.bias_gamma"])
        # joined with a lock of its own, whenever that was
        assert (states[0]["1.running_mean"] == 0).all()
    keys = [load_file(folder / f"silo-{s}.safetensors")["1.keylock.key"] for s in range(3)]
    assert not any(torch.allclose(keys[a], keys[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    for update in Capture.open(job.folder / "leakage" / "capture").updates():
        rank = next(r for r, silo in ASSIGNED[update.round].items() if silo == update.silo)
        upload = models(job, rank)[update.round]
        assert all(torch.equal(tensor, upload[n]) for n, tensor in update.after.items())


SIMULATED = {"training_type": "simulation", "gpu_mapping_file": None, "gpu_mapping_key": None}
ONE_PROCESS = SIMULATED | {"backend": "sp", "worker_num": 1, "client_num_in_total": 3}
KEPT = {
    "enable_attack": True,
    "attack_type": "gradient_inversion",
    "gradient_inversion": {"when": "never", "rounds": [0, 1, 2]},
}


def own_accuracies(job):
    """Silo and round of each accuracy that a silo told about its own key."""
    found = re.findall(r"silo (\d+), aggregate of round (\d+): accuracy in the silo", job.output)
    return sorted((int(silo), int(index)) for silo, index in found)


def locks(job, silo):
    """A silo's private state at the start of each of its rounds, and at the end."""
    folder = job.folder / "keylock_vault"
    files = sorted((folder / f"silo-{silo}").glob("*.safetensors"))
    return [load_file(path) for path in (*files, folder / f"silo-{silo}.safetensors")]


def test_one_process_simulates_every_silo_with_its_own_lock(run_job):
    job = ended(run_job(settings=LOCK, ranks=1, comm_round=3, **ONE_PROCESS, **KEPT))
    # whom FedML takes: numpy's choice from the seed of the round's number
    rounds = [[2, 1], [0, 2], [2, 1]]
    for silo in range(3):
        states = locks(job, silo)
        assert len(states) == 1 + sum(silo in taken for taken in rounds)
        for before, after in pairwise(states):
            assert torch.equal(before["1.keylock.key"], after["1.keylock.key"])
            assert not torch.equal(before["1.keylock.bias_beta"], after["1.keylock.bias_beta"])
    keys = [locks(job, silo)[0]["1.keylock.key"] for silo in range(3)]
    assert not any(torch.allclose(keys[a], keys[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    # a silo is told the last round's aggregate when its turn comes
    assert own_accuracies(job) == [(0, 0), (1, 1), (2, 0), (2, 1)]
    capture = Capture.open(job.folder / "leakage" / "capture")
    updates = [(u.round, u.silo) for u in capture.updates()]
    assert updates == [(r, silo) for r, taken in enumerate(rounds) for silo in sorted(taken)]
    assert all(set(u.after) == set(capture.final()) for u in capture.updates())
    assert not any("keylock" in name for name in capture.final())
    # what the server tests is the shared model, without anybody's lock
    model = Net()
    model.load_state_dict(capture.final())
    images, labels = next(iter(load(SimpleNamespace(client_num_in_total=3))[3]))
    loss = torch.nn.functional.cross_entropy(model.eval()(images), labels).detach()
    told = re.findall(r"'test_loss': ([\d.e-]+)", job.output)
    assert float(told[-1]) == pytest.approx(float(loss), rel=1e-4)


def test_fedmls_mpi_simulation_carries_nothing_private(run_job):
    simulated = SIMULATED | {"client_num_in_total": 3, "client_num_per_round": 2}
    job = ended(run_job("silos", settings=LOCK, comm_round=3, **simulated))
    assert_nothing_private_was_sent(job)
    assert_constants(models(job, 0)[-1])
    assert [len(locks(job, silo)) for silo in range(3)] == [2, 3, 4]
    assert own_accuracies(job) == [(0, 0), (1, 1), (2, 0), (2, 1)]


def test_nothing_private_crosses_grpc(run_grpc):
    job = ended(run_grpc(settings=LOCK))
    assert_nothing_private_was_sent(job)
    for rank in (1, 2):
        assert len(models(job, rank)) == 2
        assert_constants(models(job, rank)[-1])
    assert own_accuracies(job) == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.long
def test_a_silo_that_sends_nan_over_grpc_is_stopped(run_grpc):
    job = run_grpc("nan", settings=LOCK)
    assert job.status != 0
    assert job.ours == [
        "fedml-keylock: silo 1 (rank 2), round 0: 3.weight is not finite (NaN or infinity)"
    ]
    assert not models(job, 2)


@pytest.mark.long
def test_fedmls_own_secure_aggregation_gives_noise(run_job):
    """Why LSA is refused: without the plugin, its model leaps away after the second round."""
    plain = {"plugin": False, "settings": None, "comm_round": 3}
    prime = {"federated_optimizer": "LSA", "prime_number": 2**15 - 19, "precision_parameter": 10}
    average, secure = (
        float(models(ended(run_job(**plain, **more)), 0)[-1]["9.weight"].abs().max())
        for more in ({}, prime)
    )
    assert average < 1.5
    assert secure > 3


@pytest.mark.long
def test_silos_tell_wandb_their_accuracy(run_job):
    job = ended(
        run_job(
            settings=LOCK,
            comm_round=1,
            enable_wandb=True,
            wandb_project="p",
            env={"WANDB_MODE": "offline"},
        )
    )
    told = b"".join(path.read_bytes() for path in (job.folder / "wandb").rglob("*.wandb"))
    for silo in (0, 1):
        assert f"keylock/silo_{silo}/accuracy_with_own_key".encode() in told


@pytest.mark.long
@pytest.mark.parametrize("name", sorted({*ROBUST_AGGREGATIONS} - {"krum", "rfa", "crfl"}))
def test_every_other_robust_aggregation_of_fedmls_runs_on_locked_updates(name, run_job):
    case = "no_statistics" if name == "wise_median" else ""
    settings = LOCK | {"robust_aggregation": name}
    job = ended(run_job(case, settings=settings, ranks=4, **SETTINGS.get(name, {})))
    if not case:
        assert_constants(models(job, 0)[-1])


@pytest.mark.long
@pytest.mark.parametrize(("solution", "mechanism"), [("ldp", "laplace"), ("cdp", "gaussian")])
def test_every_other_noise_of_fedmls_runs_beside_the_lock(solution, mechanism, run_job):
    job = run_job(settings=LOCK, dp_solution_type=solution, mechanism_type=mechanism, **NOISE)
    assert_constants(models(ended(job), 0)[-1])


@pytest.mark.long
def test_fedml_clips_and_adds_noise_beside_the_lock(run_job):
    clipped = {"dp_solution_type": "cdp", "mechanism_type": "gaussian", "max_grad_norm": 5.0}
    ended(run_job("no_statistics", settings=LOCK, **clipped, **NOISE))


ATTACKS = {
    "zero": BYZANTINE | {"attack_mode": "zero"},
    "random": BYZANTINE | {"attack_mode": "random"},
    "flip": BYZANTINE | {"attack_mode": "flip"},
    "label_flipping": {
        "enable_attack": True,
        "attack_type": "label_flipping",
        "original_class_list": [0, 1],
        "target_class_list": [1, 0],
        "ratio_of_poisoned_client": 1.0,
    },
    "model_replacement": {
        "enable_attack": True,
        "attack_type": "model_replacement",
        "malicious_client_id": 0,
    },
}


@pytest.mark.long
@pytest.mark.parametrize("attack", [name for name in ATTACKS if name != "random"])
def test_every_other_attack_of_fedmls_runs_beside_the_lock(attack, run_job):
    assert_constants(models(ended(run_job(settings=LOCK, **ATTACKS[attack])), 0)[-1])


@pytest.mark.long
def test_a_silo_that_sends_nan_is_refused_beside_an_attack(run_job):
    job = run_job("nan", settings=LOCK, **ATTACKS["flip"])
    assert job.status != 0
    assert "3.weight is not finite" in job.ours[0]
