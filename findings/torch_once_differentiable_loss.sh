#!/usr/bin/env bash
# torch 2.14.1: a scalar loss that is once_differentiable passes for twice differentiable, wrongly.
#
# A gradient attack differentiates the gradient of a loss by the images. `once_differentiable` is there
# to raise where that is done to a function whose backward cannot be differentiated. It looks at whether
# the incoming gradient needs one: at the root of a graph that is the constant 1, and so of a function
# that is itself the loss the second derivative comes out without its own part, and nothing is raised.
# The same function one step below the root raises.
#
# Seen: as the loss: no error, gradient off by 0.65 of its size; below a loss: RuntimeError.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 numpy==1.26.4
"$work/venv/bin/python" - <<'PY'
import torch
from torch.autograd.function import once_differentiable


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, outputs):
        ctx.save_for_backward(outputs)
        return outputs.square().mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (outputs,) = ctx.saved_tensors
        return gradient * 2 * outputs / outputs.numel()


torch.manual_seed(0)
net = torch.nn.Linear(3, 2).double()


def slope(loss):
    """The derivative by the images of the gradient's squared size."""
    images = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3).requires_grad_()
    gradients = torch.autograd.grad(loss(net(images)), list(net.parameters()), create_graph=True)
    sum(gradient.square().sum() for gradient in gradients).backward()
    return images.grad


right = slope(lambda outputs: outputs.square().mean())
wrong = slope(Once.apply)
off = float((wrong - right).norm() / right.norm())
print(f"as the loss itself: no error, off by {off:.2f} of its size")
try:
    slope(lambda outputs: Once.apply(outputs).square())
    below = "no error"
except RuntimeError as error:
    below = str(error)
print(f"below the loss: {below}")
assert off > 0.1 and "differentiate twice" in below, "it has changed"
PY
