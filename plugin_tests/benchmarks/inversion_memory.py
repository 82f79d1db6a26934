"""Attack so many candidates as one batch and print by how much the process grew, in bytes."""

import re
import sys
from pathlib import Path

import torch
from inversion_case import by_this, case
from nets import resnet20, sigmoid_lenet


def kilobytes(entry: str) -> int:
    found = re.search(rf"{entry}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


torch.set_num_threads(1)
model = {"LeNet": sigmoid_lenet, "ResNet-20": resnet20}[sys.argv[1]]()
count = int(sys.argv[2])
by_this(case(model, 1), steps=2, restarts=1, chunk=1)
before = kilobytes("VmRSS")
by_this(case(model, count), steps=3, restarts=1, chunk=count)
sys.stdout.write(str(1024 * (kilobytes("VmHWM") - before)))
