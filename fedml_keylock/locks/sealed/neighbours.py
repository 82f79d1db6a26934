"""Chooses which silos share a pairwise mask: a circulant graph that nobody can influence."""

from __future__ import annotations

import logging

from ...errors import ConfigError

__all__ = ["MOST_COMPLETE", "SPARSE", "check_colluders", "neighbours", "reach"]

MOST_COMPLETE = 64
"""Up to so many participants, each shares a mask with all others if nothing is declared."""
SPARSE = 16
"""Beyond that: neighbours to each side, which tolerate 31 colluding silos."""


def reach(participants: int, colluders: int | None) -> int:
    """How many neighbours t to each side a silo needs, so that 2 t > colluders.

    If everyone has t neighbours to each side, the graph has connectivity 2 t: it stays connected
    when any 2 t - 1 silos are removed. Then the others' masks still hide all but their sum.

    Args:
        participants: m, of the round.
        colluders: how many silos may collude with the server. None for as many as a complete graph
            tolerates, or SPARSE neighbours to each side beyond MOST_COMPLETE participants.

    Example:
        >>> reach(100, 30), reach(10, None), reach(3, 1)
        (16, 5, 1)

    """
    complete = participants // 2
    if colluders is None:
        return complete if participants <= MOST_COMPLETE else SPARSE
    return min(complete, colluders // 2 + 1)


def neighbours(place: int, participants: int, steps: int) -> tuple[int, ...]:
    """The indices of the silos that share a mask with the silo at `place`, in order.

    Args:
        place: index of the silo among the participants, from 0.
        participants: m.
        steps: neighbours to each side; see `reach`.

    Example:
        >>> neighbours(0, 6, 2), neighbours(1, 3, 1)
        ((1, 2, 4, 5), (0, 2))

    """
    near = {(place + sign * d) % participants for d in range(1, steps + 1) for sign in (1, -1)}
    return tuple(sorted(near - {place}))


def check_colluders(silos: int, colluders: int | None) -> None:
    """Check that colluding silos leave two others; warn if there are two silos, or undeclared many.

    Args:
        silos: of the job.
        colluders: how many may collude with the server; None if not declared.

    Raises:
        ConfigError: the others would be a single silo.

    Example:
        >>> check_colluders(3, 1)

    """
    if colluders is not None and silos < colluders + 2:
        raise ConfigError(
            f"keylock.colluders: of {silos} silos at most {max(0, silos - 2)} may collude with "
            f"the server, and {colluders} are declared: what is left is a single silo's update"
        )
    if silos == 2 and colluders is None:
        logging.warning(
            "lock: sealed with two silos: each learns the other's update from the average"
        )
    if silos > MOST_COMPLETE and colluders is None:
        logging.warning(
            "lock: sealed with %d silos: masks hold while at most %d of them collude with the "
            "server; keylock: {colluders: NUMBER} declares how many may",
            silos,
            2 * SPARSE - 1,
        )
