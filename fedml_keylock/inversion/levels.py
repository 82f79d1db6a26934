"""The levels of attackers' knowledge, and what each grants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..errors import ConfigError

__all__ = ["GRANTS", "LEVELS", "check_known_levels"]

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


def check_known_levels(levels: Iterable[str]) -> None:
    """Raise ConfigError for a name that is not in ``LEVELS``.

    Example:
        >>> check_known_levels(["adaptive", "clever"])
        Traceback (most recent call last):
        fedml_keylock.errors.ConfigError: levels of knowledge are oblivious, ... not 'clever'

    """
    for level in levels:
        if level not in LEVELS:
            raise ConfigError(f"levels of knowledge are {', '.join(LEVELS)}, not {level!r}")
