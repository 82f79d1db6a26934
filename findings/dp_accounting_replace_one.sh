#!/usr/bin/env bash
# dp-accounting 0.6.0: of the same Gaussian event its two accountants disagree by a factor of two when
# neighbours differ by a replaced record.
#
# GaussianDpEvent(multiplier) is noise over sensitivity. The PLD accountant doubles the sensitivity
# under REPLACE_ONE; the RDP accountant takes the event as it is and answers as under
# ADD_OR_REMOVE_ONE. Who switches accountants, or relations, gets half or twice the noise.
#
# Seen, multiplier 1, delta 1e-5: RDP 4.73 under both relations, PLD 4.38 and 10.00.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet dp-accounting==0.6.0
"$work/venv/bin/python" - <<'PY'
from dp_accounting import GaussianDpEvent, NeighboringRelation
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

found = {}
for relation in (NeighboringRelation.ADD_OR_REMOVE_ONE, NeighboringRelation.REPLACE_ONE):
    for kind in (RdpAccountant, PLDAccountant):
        accountant = kind(neighboring_relation=relation)
        accountant.compose(GaussianDpEvent(1.0))
        found[kind, relation] = epsilon = accountant.get_epsilon(1e-5)
        print(f"{relation.name}, {kind.__name__}: epsilon {epsilon:.2f}")
add, replace = NeighboringRelation.ADD_OR_REMOVE_ONE, NeighboringRelation.REPLACE_ONE
assert found[RdpAccountant, add] == found[RdpAccountant, replace]
assert found[PLDAccountant, replace] > 2 * found[PLDAccountant, add]
PY
