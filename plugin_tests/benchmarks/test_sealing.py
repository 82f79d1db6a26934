"""What sealing costs beside sending a state as it is, how exact it is, and how many bytes it adds.

pytest plugin_tests/benchmarks/test_sealing.py --benchmark-only -n 0

Beside other ways of hiding a state: sealing.py. In a job: sealed_job.py.
"""

from __future__ import annotations

import pickle

import pytest
from nets import lenet, resnet20
from sealing import (
    ASKED,
    NETS,
    bytes_over_plain,
    cases,
    errors,
    round_of,
    sealing_among,
    sealing_under_noise,
    state_of,
)

from fedml_keylock.tensors import one_thread as in_one_thread

STATES = {"LeNet": lambda: lenet(3, 32), "ResNet-20": resnet20} | NETS


@pytest.fixture(autouse=True)
def one_thread():
    """As a rank of an MPI job has it."""
    with in_one_thread():
        yield


@pytest.mark.parametrize("net", STATES)
def test_sealing_and_opening_beside_pickling(net, paired, report):
    """FedML's MPI backend pickles what it sends, sealed or not."""
    state = {name: tensor.detach() for name, tensor in STATES[net]().state_dict().items()}
    once = round_of(state)
    ratio = paired(once, lambda: pickle.loads(pickle.dumps(state)), rounds=9)
    report(f"seal, verify and open, {net}", f"{ratio:.2f} of making bytes of the state and back")


@pytest.mark.parametrize("net", NETS)
def test_bytes(net, report, benchmark):
    ratio = benchmark.pedantic(lambda: bytes_over_plain(net), rounds=1)
    report(f"bytes, {net}", f"{ratio:.4f} of the plain state's")
    assert ratio <= (ASKED["linear"] if net.startswith("linear") else 1.035)


@pytest.mark.parametrize("silos", [3, 100])
@pytest.mark.parametrize("case", cases())
def test_the_error_of_an_average(case, silos, report, benchmark):
    plain, sealed, worst = benchmark.pedantic(lambda: errors(case, silos), rounds=1)
    report(f"error, {case}, {silos} silos", f"{sealed / plain:.2f} of FedML's float32")
    assert sealed <= ASKED["error"] * plain
    assert worst <= ASKED["error"]


def test_a_silo_among_many(paired, report):
    state = state_of("ResNet-18")
    many, few = sealing_among(state, 100, 30), sealing_among(state, 10, None)
    ratio = paired(many, few, rounds=7)
    report("sealing among 100, 30 colluding", f"{ratio:.2f} of among 10")
    assert ratio <= ASKED["silos"]


@pytest.mark.parametrize("net", NETS)
def test_sealing_under_noise(net, paired, report):
    ratio = paired(*sealing_under_noise(state_of(net)), rounds=9)
    report(f"sealing with noise, {net}", f"{ratio:.2f} of sealing without")
    assert ratio <= ASKED["noise"]
