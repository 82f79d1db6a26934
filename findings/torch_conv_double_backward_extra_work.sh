#!/usr/bin/env bash
# torch 2.14.1, CPU: the second derivative of a convolution also computes what nobody asks for.
#
# Gradient matching differentiates the gradient of a convolution once more, with weights that need no
# gradient. The double backward computes the gradient by these weights all the same, and drops it. Switching
# the weights' requires_grad off does not save it.
#
# Seen by the profiler: two convolutions where one is needed, whether the weights need a gradient or not.
# The second has the images' channels in the place of the batch, which only a gradient by weights has.
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
    return [event.input_shapes[:2] for event in seen.events() if event.name == "aten::convolution"]


without, with_it = convolutions(False), convolutions(True)
print("torch", torch.__version__, "weights need no gradient:", without, "they do:", with_it)
by_weight = [[4, 8, 8, 8], [4, 8, 8, 8]]  # channels as the batch
assert by_weight in with_it, "the gradient by the weights is computed in another way"
assert by_weight in without, "torch saves the convolution now"
PY
