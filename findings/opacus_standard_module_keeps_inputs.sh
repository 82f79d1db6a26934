#!/usr/bin/env bash
# opacus 1.6.0: a model that is unwrapped by to_standard_module keeps the last batch in its layers.
#
# GradSampleModule saves each layer's input for the backward pass. to_standard_module takes the hooks
# off and leaves what was saved by a forward pass without a backward one, such as a last test, as the
# attribute `activations` of the layers. So a pickle of the "standard" model holds that batch, bit for
# bit.
#
# Seen: Linear has `activations` beside its own attributes, and a pickle of it the batch.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet opacus==1.6.0 torch==2.14.1 numpy==1.26.4
"$work/venv/bin/python" -W ignore - <<'PY'
import io
import pickle

import torch
from opacus.grad_sample import GradSampleModule
from torch import nn

batch = torch.rand(3, 4)
wrapped = GradSampleModule(nn.Linear(4, 2))
wrapped(batch).sum().backward()
wrapped(batch)  # say, the loss that is logged at the end
plain = wrapped.to_standard_module()
left = sorted(set(vars(plain)) - set(vars(nn.Linear(4, 2))))
print(f"{type(plain).__name__} has {left}")
again = pickle.load(io.BytesIO(pickle.dumps(plain)))
assert torch.equal(again.activations[0][0], batch)
PY
