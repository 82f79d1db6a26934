#!/usr/bin/env bash
# opacus 1.6.0: with drop_last=True in the loader each private batch is the whole data set.
#
# make_private takes one over the number of batches as the rate at which it samples. 100 examples in
# batches of 64 are two batches, and one with drop_last: the rate becomes 1.0, batches of 64 become
# batches of 100, and there is no amplification by sampling. It warns that it ignores drop_last.
#
# Seen: rate 0.5 without drop_last; 1.0 and a first batch of 100 examples with it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet opacus==1.6.0 torch==2.14.1 numpy==1.26.4
"$work/venv/bin/python" - <<'PY'
import logging

import torch
from opacus import PrivacyEngine
from torch.utils.data import DataLoader, TensorDataset

logging.disable(logging.WARNING)
data = TensorDataset(torch.randn(100, 2), torch.randn(100, 1))
rates, sizes = [], []
for drop_last in (False, True):
    net = torch.nn.Linear(2, 1)
    _, _, loader = PrivacyEngine(accountant="rdp").make_private(
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        data_loader=DataLoader(data, batch_size=64, drop_last=drop_last),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    rates.append(loader.sample_rate)
    sizes.append(len(next(iter(loader))[0]))
    print(f"drop_last={drop_last}: rate {rates[-1]}, a batch of {sizes[-1]}")
assert rates == [0.5, 1.0] and sizes[1] == 100
PY
