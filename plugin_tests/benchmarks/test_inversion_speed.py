"""How fast gradients are inverted, beside breaching, a plain loop and torch, and in what memory.

pytest plugin_tests/benchmarks/test_inversion_speed.py --benchmark-only -n 0

Some of it needs breaching, which the project does not: pip install breaching==0.1.2. Everything
runs in one process, by turns, on as many threads as torch takes by itself. A machine with other
work to do disturbs it.
"""

import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from inversion_case import by_a_plain_loop, by_breaching, by_this, by_torch_alone, case, psnr
from nets import resnet20, sigmoid_lenet

HERE = Path(__file__).parent
IMAGES, RESTARTS = 16, 2
CASES = {"LeNet": (sigmoid_lenet, 300, 8), "ResNet-20": (resnet20, 48, 4)}
"""Net: the model, steps, rounds."""


def seconds(run):
    began = time.perf_counter()
    found = run()
    return time.perf_counter() - began, found


@pytest.mark.parametrize("net", CASES)
def test_candidate_steps_per_second_and_what_they_reach(net, report, benchmark):
    pytest.importorskip("breaching", reason="pip install breaching==0.1.2")
    make, steps, rounds = CASES[net]
    of = case(make(), IMAGES)
    by_this(of, steps=3, restarts=RESTARTS)
    by_breaching(of, range(1), steps=3, restarts=1)
    share = IMAGES // rounds
    rates, ours, theirs = [], [], []

    def one_round():
        which = range(len(rates) * share, (len(rates) + 1) * share)
        this, found = seconds(lambda: by_this(of, steps=steps, restarts=RESTARTS))
        ours[:] = [found]
        peer, some = seconds(lambda: by_breaching(of, which, steps=steps, restarts=RESTARTS))
        theirs.append(some)
        plain, _ = seconds(lambda: by_a_plain_loop(of, which[0], steps=steps))
        candidates = (IMAGES * RESTARTS / this, share * RESTARTS / peer, 1 / plain)
        rates.append([steps * each for each in candidates])

    benchmark.pedantic(one_round, rounds=rounds)
    for place, what in enumerate(("this", "breaching", "a plain loop")):
        rate = statistics.median(each[place] for each in rates)
        report(f"{net}, {what}", f"{rate:.0f} candidate-steps a second")
    beside = {
        "breaching": statistics.median(this / peer for this, peer, _ in rates),
        "a plain loop": statistics.median(this / plain for this, _, plain in rates),
    }
    for what, ratio in beside.items():
        report(f"{net}, this beside {what}", f"{ratio:.2f} times as fast")
    reached, other = psnr(ours[0], of.images), psnr(torch.cat(theirs), of.images)
    report(f"{net}, PSNR after {steps} steps", f"{reached.mean():.2f} dB")
    report(f"{net}, PSNR of breaching's", f"{other.mean():.2f} dB")
    assert reached.mean() >= other.mean() - 0.5


@pytest.mark.parametrize(("net", "batch"), [("ResNet-20", 1), ("LeNet", 8)])
def test_share_of_the_limit(net, batch, report, benchmark):
    """The limit is torch alone on as many images; either at the number that is best for it.

    In CPU seconds, which other work on the machine disturbs less.
    """
    cases = [case(CASES[net][0](), count, batch) for count in (8, 16, 32)]
    ours, least = {}, {}

    def step(of):
        ends = []

        def progress(*_):
            ends.append(time.process_time())

        by_this(of, steps=5, restarts=1, chunk=len(of.labels), progress=progress)
        return statistics.median(end - began for began, end in pairwise(ends[:5]))

    def alone(of):
        began = time.process_time()
        by_torch_alone(of)
        return time.process_time() - began

    def one_round():
        for of in cases:
            count = len(of.labels)
            ours.setdefault(count, []).append(step(of) / count)
            bound = statistics.median(alone(of) for _ in range(4))
            least.setdefault(count, []).append(bound / count)

    benchmark.pedantic(one_round, rounds=4)
    for count in ours:
        this, other = (1e3 * statistics.median(each[count]) for each in (ours, least))
        report(f"{net}, {count} batches of {batch}", f"{this:.2f} ms each, alone {other:.2f}")
    rounds = zip(zip(*ours.values(), strict=True), zip(*least.values(), strict=True), strict=True)
    share = statistics.median(min(other) / min(this) for this, other in rounds)
    report(f"{net}, batches of {batch}, of torch's own speed", f"{share:.2f}")
    assert share > 0.5


@pytest.mark.parametrize("net", CASES)
def test_memory_grows_no_faster_than_candidates(net, report, benchmark, scripts):
    # few of a LeNet take less than what a process grows by at once
    counts = (64, 128, 256) if net == "LeNet" else (16, 32, 64)

    def growth(count):
        line = [sys.executable, HERE / "inversion_memory.py", net, str(count)]
        done = subprocess.run(line, env=scripts, capture_output=True, text=True, check=True)
        return int(done.stdout)

    grown = benchmark.pedantic(lambda: [growth(count) for count in counts], rounds=1)
    for count, size in zip(counts, grown, strict=True):
        report(f"{net}, memory of {count} candidates", f"{size / 2**20:.0f} MiB")
    # the first candidates find some of their memory in what the process has already
    assert grown[-1] <= 1.25 * counts[-1] / counts[0] * grown[0]
