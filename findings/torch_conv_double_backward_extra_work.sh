#!/usr/bin/env bash
# torch 2.14.1, CPU: the second derivative of a convolution also computes what nobody asks for.
#
# Gradient matching differentiates the gradient of a convolution once more, with weights that need no
# gradient. The double backward computes the gradient by these weights all the same, and drops it: one
# convolution in three that it runs. Switching the weights' requires_grad off does not save it.
#
# Seen: convolutions in one double backward, by the profiler: as many with weights that need no gradient
# as with weights that do.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 numpy==1.26.4
"$work/venv/bin/python" - <<'PY'
import torch
from torch.profiler import ProfilerActivity, profile

torch.set_num_threads(1)


def convolutions(weight_needs_it):
    """Convolutions that run while a gradient by the inputs is differentiated by the outgoing one."""
    inputs = torch.randn(8, 4, 8, 8, requires_grad=True)
    weight = torch.randn(4, 4, 3, 3, requires_grad=weight_needs_it)
    slope = torch.randn(8, 4, 8, 8, requires_grad=True)
    outputs = torch.nn.functional.conv2d(inputs, weight, padding=1)
    (by_inputs,) = torch.autograd.grad(outputs, inputs, slope, create_graph=True)
    wanted = (slope, weight) if weight_needs_it else (slope,)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        torch.autograd.grad(by_inputs.square().sum(), wanted)
    names = ("aten::convolution", "aten::convolution_backward")
    return sum(event.count for event in seen.key_averages() if event.key in names)


without, with_it = convolutions(False), convolutions(True)
print("torch", torch.__version__, "convolutions:", without, "without,", with_it, "with the gradient by the weight")
assert without == with_it, "torch saves the convolution now"
assert without > 1
PY
