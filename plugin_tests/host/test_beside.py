"""What of FedML's own may be used beside the lock, and a rank that serves silo after silo."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fedml_keylock.builtin import Lock, keylock
from fedml_keylock.errors import ConfigError, HostError, VaultError
from fedml_keylock.host.flags import THEN
from fedml_keylock.host.one_process import session_of
from fedml_keylock.host.session import Session
from fedml_keylock.locks import private_state_dict
from fedml_keylock.locks.vault import silo as vaults
from fedml_keylock.locks.vault.disk import claim, release

AFFINE = {"module": "affine", "key_length": 16}


def made():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )


def arguments(**changes):
    found = {
        "training_type": "cross_silo",
        "backend": "MPI",
        "federated_optimizer": "FedAvg",
        "enable_defense": True,
        "defense_type": "keylock",
        "keylock": AFFINE,
        "client_num_in_total": 2,
        "client_num_per_round": 2,
        "worker_num": 2,
        "comm_round": 3,
        "role": "client",
        "rank": 2,
    }
    return SimpleNamespace(**found | changes)


SIMULATED = {"training_type": "simulation", "backend": "sp"}


# --- what a job may ask for


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"keylock": {**AFFINE, "then": "krumm"}}, ["keylock.then: 'krumm'", "krum, multikrum"]),
        ({"keylock": {**AFFINE, "then": "weak_dp"}}, ["keylock.then: 'weak_dp'", *THEN]),
        ({"keylock": {**AFFINE, "then": "keylock"}}, ["keylock.then: 'keylock'", *THEN]),
        (
            SIMULATED | {"keylock": {**AFFINE, "then": "krum"}},
            ["keylock.then: 'krum'", "cross_silo"],
        ),
    ],
)
def test_what_is_no_defense_that_fedml_can_run_is_refused(changes, words):
    with pytest.raises(ConfigError) as caught:
        session_of(arguments(**changes))
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"enable_dp": True, "dp_solution_type": "nbafl"}, ["dp_solution_type: 'nbafl'", "ldp"]),
        ({"enable_dp": True, "dp_solution_type": "dp_clip"}, ["dp_solution_type", "cdp"]),
        ({"enable_dp": True}, ["dp_solution_type"]),
        (
            {"enable_dp": True, "dp_solution_type": "cdp", "enable_rdp_accountant": True},
            ["enable_rdp_accountant", "accountant cannot be made"],
        ),
        ({"enable_fhe": True}, ["enable_fhe"]),
        (
            {"enable_attack": True, "attack_type": "dlg"},
            ["attack_type: 'dlg'", "gradient_inversion"],
        ),
        ({"client_num_in_total": 1}, ["client_num_in_total: 1", "client_num_per_round (2)"]),
        ({"client_num_per_round": 1}, ["client_num_per_round: 1", "worker_num (2)"]),
        ({"client_num_in_total": 9, "client_num_per_round": 3}, ["worker_num (2)"]),
        ({"federated_optimizer": "LSA"}, ["federated_optimizer: 'LSA'", "FedAvg"]),
        ({"scenario": "hierarchical"}, ["scenario: 'hierarchical'", "horizontal"]),
        ({"backend": "MQTT_S3"}, ["backend: 'MQTT_S3'", "MPI and GRPC", "cross_silo"]),
        ({"training_type": "cross_device"}, ["'cross_device'", "cross_silo and simulation"]),
        (SIMULATED | {"backend": "NCCL"}, ["backend: 'NCCL'", "MPI and sp", "simulation"]),
        (SIMULATED | {"federated_optimizer": "FedProx"}, ["'FedProx'", "FedAvg", "backend: sp"]),
        (SIMULATED | {"enable_dp": True, "dp_solution_type": "ldp"}, ["enable_dp", "cross_silo"]),
        (
            SIMULATED | {"enable_attack": True, "attack_type": "byzantine"},
            ["attack_type: 'byzantine'", "cross_silo"],
        ),
        (
            SIMULATED | {"backend": "MPI", "federated_optimizer": "FedOpt", "worker_num": 3},
            ["'FedOpt'", "FedAvg", "backend: MPI"],
        ),
        (SIMULATED | {"backend": "MPI"}, ["client_num_per_round: 2", "supports 1"]),
    ],
)
def test_what_fedml_cannot_do_is_refused(changes, words):
    with pytest.raises(HostError) as caught:
        session_of(arguments(**changes))
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("solution", ["ldp", "cdp", " cdp "])
def test_noise_that_fedml_adds_is_let_through(solution):
    assert Session.begin(arguments(enable_dp=True, dp_solution_type=solution)).then is None


def test_wise_median_is_refused_where_fedml_loses_count(tmp_path):
    keylock = {**AFFINE, "vault": tmp_path, "then": "wise_median"}
    with pytest.raises(ConfigError, match=r"wise_median cannot run .* such as 1\.running_mean"):
        Session.begin(arguments(keylock=keylock)).adopt(made())
    session = Session.begin(arguments(keylock=keylock))
    session.adopt(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)))
    assert session.then == "wise_median"


def test_clipping_is_refused_where_fedml_cannot_clip(tmp_path):
    keylock = {**AFFINE, "vault": tmp_path}
    noise = {"enable_dp": True, "dp_solution_type": "cdp", "max_grad_norm": 1.0}
    with pytest.raises(ConfigError, match=r"max_grad_norm: .* such as 1\.num_batches_tracked"):
        Session.begin(arguments(keylock=keylock, **noise)).adopt(made())
    Session.begin(arguments(keylock=keylock, **noise)).adopt(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    )


DEFENDER = """
import sys, types
import fedml, fedml_keylock
from fedml.core.security.defense.krum_defense import KrumDefense
from fedml.core.security.fedml_defender import FedMLDefender
from fedml_keylock.errors import ConfigError
fedml_keylock.activate()

def args(**flags):
    return types.SimpleNamespace(
        training_type="cross_silo", backend="MPI", federated_optimizer="FedAvg", role="server",
        enable_defense=True, defense_type="keylock", client_num_in_total=2, comm_round=3,
        client_num_per_round=2, worker_num=2, rank=0, **flags)

defender = FedMLDefender()
defender.init(args())
assert defender.is_defense_enabled() and defender.defense_type == "keylock"
assert not defender.is_defense_before_aggregation()
assert defender.get_benign_client_idxs([0, 1]) == [0, 1]
given = args(keylock={"module": "affine", "then": "krum"}, byzantine_client_num=0)
defender.init(given)
assert type(defender.defender) is KrumDefense and defender.is_defense_before_aggregation()
assert given.defense_type == "keylock"  # the job's own arguments stay
try:
    defender.init(args(keylock={"module": "affine", "then": "krum"}))
except ConfigError as error:
    assert "keylock.then: krum needs byzantine_client_num" in str(error), error
else:
    raise AssertionError
"""


def test_fedmls_defender_is_its_own_for_then_and_none_otherwise(with_fedml):
    ended = with_fedml(DEFENDER)
    assert ended.status == 0, ended.stderr[-2000:]


ADAPTER = """
import types
import fedml, fedml_keylock
from fedml.cross_silo.client.fedml_trainer_dist_adapter import TrainerDistAdapter

class Trainer:
    def update_dataset(self, index):
        self.given = index

def given(index, **flags):
    adapter = TrainerDistAdapter.__new__(TrainerDistAdapter)
    adapter.args = types.SimpleNamespace(
        training_type="cross_silo", backend="MPI", federated_optimizer="FedAvg", role="client",
        client_num_in_total=3, comm_round=0, client_num_per_round=2, worker_num=2, rank=2, **flags)
    adapter.client_index, adapter.trainer = 1, Trainer()
    adapter.update_dataset(index)
    return adapter.trainer.given

on = {"enable_defense": True, "defense_type": "keylock"}
assert given(0) == 1  # FedML's own: it takes 0 for none
fedml_keylock.activate()
assert given(0) == 1 and given(2) == 2
assert given(0, **on) == 0 and given(2, **on) == 2 and given(None, **on) == 1
"""


def test_a_rank_is_given_the_data_of_silo_0_when_the_server_says_so(with_fedml):
    ended = with_fedml(ADAPTER)
    assert ended.status == 0, ended.stderr[-2000:]


# --- what the server does to constants


def test_constants_are_given_back_and_nothing_else_is_touched(tmp_path):
    locked = {**AFFINE, "vault": tmp_path, "then": "krum"}
    session = Session.begin(arguments(role="server", rank=0, keylock=locked))
    model = made()
    state = {n: torch.rand(t.shape, dtype=torch.float64) for n, t in model.state_dict().items()}
    before = {n: t.clone() for n, t in state.items()}
    session.pin(state)  # there is no agreement yet
    assert all(torch.equal(state[n], before[n]) for n in before)
    session.adopt(model)
    session.pin(state)
    assert session.agreement is not None
    constants = session.agreement.constants
    assert set(constants) == {n for n in state if n.startswith("1.")}
    for name, tensor in state.items():
        assert tensor.dtype == torch.float64
        wanted = torch.full_like(tensor, constants[name]) if name in constants else before[name]
        assert torch.equal(tensor, wanted)
    session.pin(None)
    session.pin({0: "a model for each silo"})


@pytest.mark.parametrize("module", ["affine", "stem"])
def test_a_first_model_is_sent_with_the_constants_of_locked_layers(tmp_path, module):
    """Of a model that was trained before, or whose first layer's weights are the silos' own."""
    locked = {**AFFINE, "vault": tmp_path, "module": module}
    session = Session.begin(arguments(role="server", rank=0, keylock=locked))
    model = made()
    with torch.no_grad():
        model[1].weight.fill_(0.3)
        model[1].running_mean.fill_(2.0)
    own = {n: t.clone() for n, t in model.state_dict().items()}
    session.adopt(model)
    message = {"model_params": model.state_dict()}
    session.outgoing(message, "model_params", 1)
    assert session.agreement is not None
    constants = session.agreement.constants
    assert ("0.weight" in constants) is (module == "stem")
    for name, tensor in message["model_params"].items():
        wanted = torch.full_like(tensor, constants[name]) if name in constants else own[name]
        assert torch.equal(tensor, wanted), name
    assert all(torch.equal(t, own[n]) for n, t in model.state_dict().items())  # its own stays


# --- silo after silo


@pytest.fixture
def serving(tmp_path):
    """A rank that serves many silos, its defense, and an optimizer made before the first."""
    torch.manual_seed(0)
    settings = {"key_length": 16, "module": "mixing", "vault": tmp_path}
    session = Session.begin(arguments(client_num_in_total=4, comm_round=9, keylock=settings))
    model = made()
    session.adopt(model)
    return session, model, torch.optim.SGD(model.parameters(), lr=0.1)


def train(session, model, optimizer, silo, index):
    session.args.round_idx = index
    session.enter(silo)
    start = private_state_dict(model)

    def run():
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(
                model(torch.rand(6, 1, 8, 8)), torch.arange(6) % 3
            ).backward()
            optimizer.step()

    session.train(SimpleNamespace(model=model), None, run)
    return start, private_state_dict(model)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_a_lock_follows_its_silo(serving, tmp_path):
    session, model, optimizer = serving
    assert not list(tmp_path.iterdir())  # which silo it serves is not known yet
    held = [id(p) for p in model.parameters()]
    _, first = train(session, model, optimizer, 2, 0)
    kept = (tmp_path / "silo-2.safetensors").read_bytes()
    other, _ = train(session, model, optimizer, 0, 1)
    assert (tmp_path / "silo-2.safetensors").read_bytes() == kept
    for name in first:
        if name.startswith("1.keylock.") and first[name].numel() > 1:
            assert not torch.allclose(other[name], first[name]), name
    # the former silo's statistics are not the next one's start
    assert (other["1.running_mean"] == 0).all()
    assert not (first["1.running_mean"] == 0).all()
    again, end = train(session, model, optimizer, 2, 2)
    assert equal(again, first)
    assert not equal(end, first)
    assert [id(p) for p in model.parameters()] == held


def test_a_silos_lock_is_another_ranks_in_the_next_round(serving, tmp_path):
    session, model, optimizer = serving
    _, end = train(session, model, optimizer, 1, 0)
    settings = session.args.keylock
    other = Session.begin(arguments(rank=1, client_num_in_total=4, comm_round=9, keylock=settings))
    twin = made()
    other.adopt(twin)
    start, _ = train(other, twin, torch.optim.SGD(twin.parameters(), lr=0.1), 1, 1)
    assert equal(start, end)


def test_a_rank_does_not_train_with_the_last_silos_lock(serving):
    session, model, optimizer = serving
    train(session, model, optimizer, 1, 0)
    with pytest.raises(ConfigError, match="before it had a silo's lock"):
        session.train(SimpleNamespace(model=model), None, lambda: None)


def test_no_silo_is_entered_after_the_last_round(serving, tmp_path):
    session, model, optimizer = serving
    session.args.comm_round = 1
    train(session, model, optimizer, 1, 0)
    session.enter(3)
    assert not (tmp_path / "silo-3.safetensors").exists()


def test_messages_name_the_silo_and_not_the_rank(serving):
    session, model, optimizer = serving
    assert session.who == "rank 2, round 0"
    train(session, model, optimizer, 3, 4)
    assert session.who == "silo 3 (rank 2), round 4"


def test_a_rank_of_one_silo_takes_no_other(tmp_path):
    session = Session.begin(arguments(keylock={**AFFINE, "vault": tmp_path}))
    session.adopt(made())
    session.enter(1)
    with pytest.raises(
        HostError, match=r"silo 1 \(rank 2\), round 0: FedML gave it the data of silo 0"
    ):
        session.enter(0)


@pytest.mark.parametrize("silo", [-1, 4])
def test_a_silo_that_there_is_not_is_not_entered(serving, tmp_path, silo):
    session, *_ = serving
    with pytest.raises(HostError, match=f"silo {silo}; there is none"):
        session.enter(silo)
    assert not list(tmp_path.iterdir())


def test_another_model_of_a_silo_is_refused(serving, tmp_path):
    session, model, optimizer = serving
    train(session, model, optimizer, 1, 0)
    defense, other = keylock(session.args.keylock), nn.Sequential(made(), nn.Linear(3, 2))
    agreement = replace(defense.describe(other), layers=("0.0",))
    defense.protect(other, silo=None, agreement=agreement)
    with pytest.raises(VaultError, match="its layout is"):
        defense.enter_silo(other, silo=1)


# --- one process at a time, one after another

HOLDER = """
import sys, time
from pathlib import Path
from fedml_keylock.locks.vault.disk import claim, release
path = Path(sys.argv[1])
claim(path, what="it")
print("held", flush=True)
sys.stdin.readline()
time.sleep(float(sys.argv[2]))
release(path)
print("released", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds a lock file; `write` has it release that after 0.5 seconds."""
    path = tmp_path / ".silo-1.lock"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), "0.5"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield path, process
    process.kill()
    process.communicate()


def test_a_claim_is_handed_over_and_waited_for(holder):
    path, process = holder
    with pytest.raises(VaultError, match=f"in use by process {process.pid}"):
        claim(path, what="it")
    with pytest.raises(VaultError, match=f"in use by process {process.pid}"):
        claim(path, what="it", wait=0.2)
    process.stdin.write("\n")
    process.stdin.flush()
    assert claim(path, what="it", wait=30)
    assert process.stdout.readline() == "released\n"
    assert process.poll() is None  # it lives: what it let go is the claim
    release(path)


def test_what_is_released_is_claimed_anew(tmp_path):
    path = tmp_path / "lock"
    release(path)  # nothing to release
    assert claim(path, what="it")
    assert not claim(path, what="it")
    release(path)
    assert claim(path, what="it")
    release(path)


def test_a_rank_waits_for_the_silos_former_rank(serving, tmp_path, holder):
    session, model, optimizer = serving
    path, process = holder
    process.stdin.write("\n")
    process.stdin.flush()
    train(session, model, optimizer, 1, 0)
    assert path == vaults._lock_file(tmp_path, 1)


def test_a_silo_that_is_in_use_is_not_entered(serving, tmp_path, holder, monkeypatch):
    session, model, _ = serving
    monkeypatch.setattr(Lock, "HAND_OVER", 0.1)
    before = private_state_dict(model)
    with pytest.raises(VaultError, match="silo 1 is in use by process"):
        session.enter(1)
    assert equal(private_state_dict(model), before)
