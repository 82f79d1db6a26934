"""Levels of knowledge, and what each grants."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["GRANTS", "LEVELS"]

GRANTS: Mapping[str, frozenset[str]] = {
    "oblivious": frozenset(),
    "adaptive": frozenset({"kind"}),
    "statistics": frozenset({"kind", "statistics"}),
    "insider": frozenset({"kind", "peer"}),
    "temporal": frozenset({"kind", "rounds"}),
    "simulating": frozenset({"kind", "public data"}),
    "oracle": frozenset({"private state"}),
}
"""Level of knowledge to what it grants: the lock's ``kind``, ``statistics`` of normalisation
layers, a colluding ``peer``'s private state, ``rounds`` to pool, ``public data`` of the same kind,
or the silo's own ``private state``."""

LEVELS = tuple(GRANTS)
