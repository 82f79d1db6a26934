"""What a capture of 100 rounds of ten silos costs: disk, memory, and time in the server."""

from __future__ import annotations

import re
import statistics
import time
from pathlib import Path

import torch
from nets import resnet20
from torch.nn.functional import cross_entropy

from fedml_keylock.evaluation.capture import Capture
from fedml_keylock.types import ClientUpdate

ROUNDS, SILOS = 100, 10


def resident() -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def train_one_batch(model, images, labels) -> float:
    began = time.perf_counter()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    cross_entropy(model(images), labels).backward()
    optimizer.step()
    return time.perf_counter() - began


def test_a_capture_is_flat_in_memory_and_smaller_than_the_wire(benchmark, report, tmp_path):
    torch.set_num_threads(1)
    model = resnet20()
    batch = (torch.rand(64, 3, 32, 32), torch.randint(10, (64,)))
    steps = [train_one_batch(model, *batch) for _ in range(6)][1:]
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    size = sum(value.nbytes for value in state.values())
    capture = Capture.create(tmp_path / "capture", {"learning_rate": 0.1})
    adds: list[float] = []
    levels: list[int] = []

    def run() -> None:
        for round_index in range(ROUNDS):
            for silo in range(SILOS):
                update = ClientUpdate(state, state, 0.1, silo=silo, round=round_index)
                began = time.perf_counter()
                capture.add(update)
                adds.append(time.perf_counter() - began)
            levels.append(resident())

    benchmark.pedantic(run, rounds=1)
    disk = sum(path.stat().st_size for path in capture.folder.rglob("*") if path.is_file())
    wire = 2 * ROUNDS * SILOS * size
    grown = levels[-1] - levels[ROUNDS // 10]
    add, step = statistics.median(adds), statistics.median(steps)
    report("capture, 100 rounds of 10 ResNet-20: disk over wire", f"{disk / wire:.3f}")
    report("capture: memory grown after its first tenth", f"{grown / 2**20:.1f} MiB")
    report(
        f"capture: an update of {size / 1e6:.1f} MB",
        f"{1000 * add:.1f} ms, {100 * add / step:.1f} % of a training step on 64 images",
    )
    began = time.perf_counter()
    assert sum(1 for _ in Capture.open(capture.folder).each()) == ROUNDS * SILOS
    report("capture: reading it, SHA-256 and all", f"{time.perf_counter() - began:.1f} s")
    assert disk <= 1.05 * wire
    assert grown < 16 * 2**20
    # a round is at least a hundred steps a silo; silos train side by side, the server adds in turn
    assert SILOS * add <= 0.03 * 100 * step
    assert resident() - levels[-1] < 64 * 2**20
