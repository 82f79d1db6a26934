"""What the lock costs: a training step, memory, an import, and locking itself.

pytest plugin_tests/benchmarks --benchmark-only -n 0
"""

import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from steps import LOCKS, step_of
from torchvision import models

from fedml_keylock import KeyLockConfig, lock_model, unlock_model
from fedml_keylock.tensors import one_thread as in_one_thread

HERE = Path(__file__).parent
ROUNDS = {"LeNet": 300, "ResNet-20": 40, "ResNet-18": 25, "ViT-tiny": 9}


@pytest.fixture(autouse=True)
def one_thread():
    """As a rank of an MPI job has it."""
    with in_one_thread():
        yield


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("net", ROUNDS)
def test_a_training_step(net, lock, paired, report):
    ratio = paired(step_of(net, lock), step_of(net, "none"), rounds=ROUNDS[net])
    report(f"step, {net}, {lock}", f"{ratio:.3f} of the plain one")


@pytest.mark.parametrize(
    ("lock", "control"),
    [
        ("paper, first", "LeNet, one batch norm"),
        ("paper, all", "LeNet, three batch norms"),
    ],
)
def test_a_step_of_lenet_beside_the_same_with_public_norms(lock, control, paired, report):
    """The published lock brings a batch norm where there was none; this is the lock alone."""
    ratio = paired(step_of("LeNet", lock), step_of(control, "none"), rounds=300)
    report(f"step, LeNet, {lock}", f"{ratio:.3f} of the one with public batch norms in its place")


@pytest.mark.parametrize("lock", [*LOCKS][1:])
@pytest.mark.parametrize("net", ROUNDS)
def test_peak_memory(net, lock, report, benchmark, scripts):
    def peak(kind):
        line = [sys.executable, HERE / "memory.py", net, kind]
        done = subprocess.run(line, env=scripts, capture_output=True, text=True, check=True)
        return int(done.stdout)

    ratios = []
    benchmark.pedantic(lambda: ratios.append(peak(lock) / peak("none")), rounds=3)
    report(f"peak memory, {net}, {lock}", f"{statistics.median(ratios):.3f} of the plain one")


def test_importing(report, benchmark):
    script = (
        "import sys, time; began = time.perf_counter(); import fedml_keylock;"
        "print(time.perf_counter() - began, 'torch' in sys.modules)"
    )
    times = []

    def once():
        line = [sys.executable, "-c", script]
        done = subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()
        assert done[1] == "False"
        times.append(float(done[0]))

    benchmark.pedantic(once, rounds=15)
    report("import fedml_keylock", f"{1e3 * statistics.median(times):.1f} ms, without torch")


@pytest.mark.parametrize("lock", [*LOCKS][1:])
def test_locking_resnet_152(lock, report, benchmark):
    model = models.resnet152()
    config = LOCKS[lock]
    assert isinstance(config, KeyLockConfig)
    benchmark.pedantic(
        lambda: lock_model(model, config),
        teardown=lambda: unlock_model(model),
        rounds=5,
        warmup_rounds=1,
    )
    report(f"locking ResNet-152, {lock}", f"{benchmark.stats.stats.median:.3f} s")
