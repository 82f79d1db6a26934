#!/usr/bin/env bash
# torchmetrics 1.9.0: its SSIM of small pictures averages a border that it has mirrored itself.
#
# Wang et al. (2004) and scikit-image score the windows that lie within the picture. torchmetrics
# pads by reflection, keeps the scores of the padded windows and averages them too: on 28 x 28
# pixels these are 59 % of all, and on dark borders they are near 1. Two figures that have nothing in
# common get .38 in place of -.03. Without its outer five pixels the map that it returns on request
# is scikit-image's to 1e-6.
#
# Seen: torchmetrics 0.376, scikit-image -0.028, the inner part of torchmetrics' map -0.028.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torchmetrics==1.9.0 scikit-image==0.24.0 torch==2.14.1 numpy==1.26.4
"$work/venv/bin/python" - <<'PY'
import numpy as np
import torch
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

crosses = []
for shift in (0, 3):
    cross = torch.zeros(28, 28)
    cross[6:22, 8 + shift : 12 + shift] = 1
    cross[10 + shift : 13 + shift, 6:22] = 1
    crosses.append(cross)
one, other = crosses
score, scores = structural_similarity_index_measure(
    one[None, None], other[None, None], data_range=1.0, return_full_image=True
)
reference = structural_similarity(
    one.numpy(), other.numpy(), data_range=1.0, gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False,
)
inner = float(scores[..., 5:-5, 5:-5].mean())
print(f"torchmetrics {float(score):.3f}, scikit-image {reference:.3f}, inner part {inner:.3f}")
assert np.isclose(inner, reference, atol=1e-5)
assert 0.37 < float(score) < 0.38 and reference < 0, "it has changed"
PY
