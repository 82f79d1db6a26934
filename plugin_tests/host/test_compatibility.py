"""What of FedML's own may be used beside the lock, and how FedML is told of it."""

import pytest
from job_arguments import PAPER, SIMULATED, arguments, made
from torch import nn

from fedml_keylock.errors import ConfigError, HostError
from fedml_keylock.host.compatibility import ROBUST_AGGREGATIONS
from fedml_keylock.host.session_of import session_of


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"keylock": {**PAPER, "robust_aggregation": "krumm"}},
            ["keylock.robust_aggregation: 'krumm'", "krum, multikrum"],
        ),
        (
            {"keylock": {**PAPER, "robust_aggregation": "weak_dp"}},
            ["keylock.robust_aggregation: 'weak_dp'", *ROBUST_AGGREGATIONS],
        ),
        (
            {"keylock": {**PAPER, "robust_aggregation": "keylock"}},
            ["keylock.robust_aggregation: 'keylock'", *ROBUST_AGGREGATIONS],
        ),
        (
            SIMULATED | {"keylock": {**PAPER, "robust_aggregation": "krum"}},
            ["keylock.robust_aggregation: 'krum'", "cross_silo"],
        ),
    ],
)
def test_what_is_no_defense_that_fedml_can_run_is_refused(changes, words):
    with pytest.raises(ConfigError) as caught:
        session_of(arguments(**changes))
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("lock", [{"lock": "paper"}, {"lock": "rotated"}, {"lock": "sealed"}])
def test_fedml_does_not_assess_the_contributions_of_locked_silos(lock):
    asked = {"enable_contribution": True, "contribution_alg": "LOO"}
    with pytest.raises(ConfigError) as caught:
        session_of(arguments(keylock=lock, **asked))
    assert str(caught.value) == (
        "enable_contribution: FedML assesses silos (LOO) by testing single silos' models on its "
        "server, which defense_type: keylock keeps from it; leave it out"
    )
    # the algorithm alone is not run, and without a lock there is nothing to keep
    for fine in ({"contribution_alg": "LOO"}, {"enable_contribution": False}):
        assert session_of(arguments(keylock=lock, **fine)) is not None
    inversion = {"enable_attack": True, "attack_type": "gradient_inversion"}
    assert session_of(arguments(enable_defense=False, keylock=None, **inversion, **asked))


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
    assert (
        session_of(arguments(enable_dp=True, dp_solution_type=solution)).robust_aggregation is None
    )


def test_wise_median_is_refused_where_fedml_loses_count(tmp_path):
    keylock = {**PAPER, "vault": tmp_path, "robust_aggregation": "wise_median"}
    with pytest.raises(ConfigError, match=r"wise_median cannot run .* such as 1\.running_mean"):
        session_of(arguments(keylock=keylock)).adopt(made())
    session = session_of(arguments(keylock=keylock))
    session.adopt(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)))
    assert session.robust_aggregation == "wise_median"


def test_clipping_is_refused_where_fedml_cannot_clip(tmp_path):
    keylock = {**PAPER, "vault": tmp_path}
    noise = {"enable_dp": True, "dp_solution_type": "cdp", "max_grad_norm": 1.0}
    with pytest.raises(ConfigError, match=r"max_grad_norm: .* such as 1\.num_batches_tracked"):
        session_of(arguments(keylock=keylock, **noise)).adopt(made())
    session_of(arguments(keylock=keylock, **noise)).adopt(
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
given = args(keylock={"lock": "paper", "robust_aggregation": "krum"}, byzantine_client_num=0)
defender.init(given)
assert type(defender.defender) is KrumDefense and defender.is_defense_before_aggregation()
assert given.defense_type == "keylock"  # the job's own arguments stay
try:
    defender.init(args(keylock={"lock": "paper", "robust_aggregation": "krum"}))
except ConfigError as error:
    assert "keylock.robust_aggregation: krum needs byzantine_client_num" in str(error), error
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
