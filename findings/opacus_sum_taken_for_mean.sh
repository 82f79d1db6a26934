#!/usr/bin/env bash
# opacus 1.6.0: gradients of single examples do not tell whether the loss was a sum or a mean.
#
# GradSampleModule multiplies what comes back by the batch size if loss_reduction is "mean", its default.
# Of a loss that is a sum, each example's gradient is then as many times too large, and so is clipped
# harder. Their mean still equals the gradient of the batch, so the check that one would make passes, and
# nothing warns.
#
# Seen, batch of 8: the mean of grad_sample is p.grad under both losses; the examples' norms are 8 times
# as large under the sum.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet opacus==1.6.0 torch==2.14.1 numpy==1.26.4
"$work/venv/bin/python" -W ignore - <<'PY'
import torch
from opacus.grad_sample import GradSampleModule
from torch import nn

torch.manual_seed(0)
x, y = torch.rand(8, 5), torch.randint(3, (8,))
first, norms = nn.Linear(5, 3).state_dict(), {}
for reduction in ("mean", "sum"):
    net = nn.Linear(5, 3)
    net.load_state_dict(first)
    wrapped = GradSampleModule(net)  # loss_reduction="mean"
    nn.functional.cross_entropy(wrapped(x), y, reduction=reduction).backward()
    sample, grad = net.weight.grad_sample, net.weight.grad
    norms[reduction] = sample.flatten(1).norm(dim=1)
    same = torch.allclose(sample.mean(0), grad, atol=1e-6)
    print(f"{reduction}: mean of grad_sample is p.grad: {same}; norms {norms[reduction].mean():.3f}")
    assert same
assert torch.allclose(norms["sum"], 8 * norms["mean"], rtol=1e-4)
PY
