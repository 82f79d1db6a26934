"""Registers our names with FedML's defender and attacker."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ...plugins import defenses
from ..job_configuration import INVERSION, our_attack, our_defense, word
from ..patching import Function, Seam, around
from ..session import Session
from .current_job import begin

if TYPE_CHECKING:
    from fedml.core.security.fedml_attacker import FedMLAttacker
    from fedml.core.security.fedml_defender import FedMLDefender

__all__ = ["seams"]


def seams() -> tuple[Seam, ...]:
    """Seams of FedML's security package."""
    from fedml.core.security.fedml_attacker import FedMLAttacker
    from fedml.core.security.fedml_defender import FedMLDefender

    return (
        Seam(FedMLDefender, "init", ("self", "args"), _defender_init),
        Seam(FedMLAttacker, "init", ("self", "args"), _attacker_init),
    )


@around
def _defender_init(original: Function, self: FedMLDefender, args: Any) -> None:
    if our_defense(args) is None:
        kind = getattr(args, "defense_type", None)
        try:
            original(self, args)
        except Exception as error:
            # FedML's error for an unknown name; it names neither that name nor the known ones
            if "defense_type is not defined" not in str(error):
                raise
            raise ConfigError(
                f"defense_type: {kind!r} is unknown to FedML and to every plugin; "
                f"plugins know: {', '.join(defenses())}"
            ) from None
        return
    session = begin(args)
    if session is not None and session.robust_aggregation is not None:
        _fedmls_own(original, self, args, session)
        return
    self.args = args
    self.is_enabled = True
    self.defense_type = our_defense(args)
    self.defender = _LeavesAggregation()


def _fedmls_own(original: Function, defender: FedMLDefender, args: Any, session: Session) -> None:
    """Make FedML's own defense beside the lock, from the settings that FedML reads anyway."""
    theirs = copy.copy(args)
    theirs.defense_type = session.robust_aggregation
    try:
        original(defender, theirs)
    except AttributeError as error:
        if error.obj is not theirs:
            raise
        raise ConfigError(
            f"{session.name}.robust_aggregation: {session.robust_aggregation} needs {error.name}, "
            "which is not set; set it in defense_args"
        ) from None


class _LeavesAggregation:
    """A defender for FedML's servers that leaves aggregation as it is."""

    def get_malicious_client_idxs(self) -> list[int]:
        return []

    def run(self, updates: Sequence[Any], aggregate: Function, _auxiliary: Any) -> Any:
        """Aggregate like the MPI simulation's server."""
        return aggregate(updates)


@around
def _attacker_init(original: Function, self: FedMLAttacker, args: Any) -> None:
    original(self, args)
    kind = word(args, "attack_type")
    if self.is_enabled and self.attacker is None and not our_attack(args):
        raise ConfigError(
            f"attack_type: {kind!r} is unknown to FedML and to every plugin; "
            f"plugins know: {INVERSION}"
        )
