#!/usr/bin/env bash
# torch 2.14.1: behind a reentrant checkpoint `autograd.grad` finds a parameter's gradient to be zero.
#
# `checkpoint(..., use_reentrant=True)`, as old models call it, raises where `autograd.grad` passes
# through it. It cannot where only parameters inside are asked for, as of a model that is fine-tuned
# in part: autograd leaves its node out, since none of the node's inputs is asked for. What is inside
# then counts as unused, and gets None or, with `materialize_grads`, zeros. A gradient attack or
# penalty goes on with these; `loss.backward()` of the same graph fills all `.grad`s.
#
# Seen: asked for inside alone 0.000, with a layer before it an error, use_reentrant=False 0.423, and
# backward() 0.423.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 numpy==1.26.4
"$work/venv/bin/python" -W ignore - <<'PY'
import torch
from torch.utils.checkpoint import checkpoint

torch.manual_seed(0)
first, second = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
images = torch.rand(5, 3)


def loss(reentrant):
    return checkpoint(second, first(images), use_reentrant=reentrant).square().mean()


def norm_inside(reentrant, weights):
    try:
        *_, inside = torch.autograd.grad(
            loss(reentrant), weights, allow_unused=True, materialize_grads=True
        )
    except RuntimeError as error:
        return str(error).split(",")[0]
    return f"{float(inside.norm()):.3f}"


alone = norm_inside(True, [second.weight])
both = norm_inside(True, [first.weight, second.weight])
other = norm_inside(False, [second.weight])
print(f"inside alone: {alone}; with a layer before it: {both}; not reentrant: {other}")
loss(True).backward()
filled = f"{float(second.weight.grad.norm()):.3f}"
print(f"backward(): {filled}")
assert alone == "0.000" and "reentrant" in both and other == filled != "0.000", "it has changed"
PY
