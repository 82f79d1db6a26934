#!/usr/bin/env bash
# flwr 1.42.0: quantising for SecAgg+ draws from numpy's global generator.
#
# The stochastic rounding of a client's update uses numpy.random.rand. A client that seeds numpy once, as
# training scripts do, shuffles and augments otherwise after its first secure round than without
# secure aggregation, so that two runs that differ only in SecAgg+ are not comparable; and clients
# with one seed round the same entries the same way, so that their errors do not average out.
#
# Seen: the next draw after np.random.seed(0) is 0.549 without and 0.180 with quantize; two
# clients of one seed have equal rounding errors in every entry.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet flwr==1.42.0 numpy==1.26.4
"$work/venv/bin/python" - <<'PY'
import numpy as np
from flwr.common.secure_aggregation.quantization import dequantize, quantize

update = [np.linspace(-1, 1, 10_001)]
np.random.seed(0)
plain = np.random.rand()
np.random.seed(0)
first = quantize(update, 8.0, 2**22)
after = np.random.rand()
np.random.seed(0)
second = quantize(update, 8.0, 2**22)
print(f"next draw: {plain:.3f} without, {after:.3f} after quantising")
assert plain != after
errors = [dequantize(q, 8.0, 2**22)[0] - update[0] for q in (first, second)]
mean = np.abs(sum(errors) / 2).mean() / np.abs(errors[0]).mean()
print(f"error of two clients' average over that of one: {mean:.2f}")
assert mean == 1.0
PY
