#!/usr/bin/env bash
# torch 2.14.1: a comparison of int32 tensors with a wider Python number wraps the number, in silence.
#
# Words of masked sums are checked against bounds such as 2**31 and 2**32. Of an int32 tensor the bound
# is brought to 32 bits first: 5 is not less than 2**32 (which became 0), 5 equals 2**32 + 5, and of
# int64 tensors -1 equals 2**64 - 1. numpy compares by value. uint32, which would be the type for such
# words, pickles, and what it pickles to cannot be read back.
#
# Seen: (5 < 2**32) False, (5 == 2**32 + 5) True, (-1 == 2**64 - 1) True; unpickling AttributeError.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 numpy==1.26.4
"$work/venv/bin/python" - <<'PY'
import pickle

import numpy as np
import torch

five, minus = torch.tensor([5], dtype=torch.int32), torch.tensor([-1])
print("5 < 2**32:", bool(five < 2**32), " numpy:", bool(five.numpy().astype(np.int64)[0] < 2**32))
print("5 == 2**32 + 5:", bool(five == 2**32 + 5), " -1 == 2**64 - 1:", bool(minus == 2**64 - 1))
assert not bool(five < 2**32)
assert bool(five == 2**32 + 5)
assert bool(minus == 2**64 - 1)
packed = pickle.dumps(torch.tensor([1, 2], dtype=torch.uint32))
try:
    pickle.loads(packed)
except AttributeError as error:
    print("uint32:", error)
else:
    raise SystemExit("uint32 tensors can be unpickled now")
PY
