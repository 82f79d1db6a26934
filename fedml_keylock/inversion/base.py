"""Defines the interface of attacks, and checks whether one can run at a level of knowledge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from ..errors import AttackError
from ..types import ClientUpdate, Reconstruction
from .knowledge import Knowledge
from .levels import GRANTS

__all__ = ["SEARCH", "Attack", "check_level", "check_one_step"]

SEARCH = "; use an attack that searches"
"""What to do instead, for local training of several steps."""


@runtime_checkable
class Attack(Protocol):
    """The interface of every attack, including plugins'."""

    @property
    def name(self) -> str:
        """Its name in reports."""

    @property
    def needs(self) -> frozenset[str]:
        """The required part of what ``GRANTS`` grants."""

    @property
    def uses(self) -> frozenset[str]:
        """All that it can use, including ``needs``.

        It refuses to run at a level that grants more: the result would not represent that level.
        """

    def reconstruct(
        self,
        updates: Sequence[ClientUpdate],
        model: nn.Module,
        *,
        knowledge: Knowledge,
        generator: torch.Generator,
        progress: Callable[[int, int], None] | None = None,
    ) -> Reconstruction:
        """Reconstruct the data behind each update.

        Args:
            updates: u updates, each made as the knowledge says.
            model: as far as the attacker knows it. It stays unchanged, and its own public values do
                not matter.
            knowledge: what else the attacker knows.
            generator: for all random draws; the same state gives the same result.
            progress: called with the evaluations done and those in all.

        Raises:
            AttackError: level, updates, model and knowledge do not fit together or the attack;
                raised before any work is done.

        """


def check_level(attack: Attack, level: str) -> None:
    """Refuse a level of knowledge that grants less than an attack needs, or more than it uses.

    Example:
        >>> from fedml_keylock.inversion import dlg
        >>> check_level(dlg(), "temporal")
        Traceback (most recent call last):
        fedml_keylock.errors.AttackError: dlg has no use for the rounds of level 'temporal'...

    """
    missing = sorted(attack.needs - GRANTS[level])
    fitting = [name for name, grant in GRANTS.items() if attack.needs <= grant <= attack.uses]
    runs = f"it runs at: {', '.join(fitting)}"
    if missing:
        raise AttackError(
            f"{attack.name} needs {' and '.join(missing)}, which level {level!r} does not grant; "
            f"{runs}"
        )
    idle = sorted(GRANTS[level] - attack.uses)
    if idle:
        raise AttackError(
            f"{attack.name} has no use for the {' and '.join(idle)} of level {level!r}; {runs}"
        )


def check_one_step(name: str, knowledge: Knowledge, *, instead: str = "") -> None:
    """Refuse local training of more than one plain SGD step.

    Args:
        name: of the attack.
        knowledge: the attacker's.
        instead: another option to name.

    """
    if knowledge.training is not None:
        raise AttackError(
            f"{name} is for the gradient of one plain SGD step: it does not simulate "
            f"Knowledge.training{instead}"
        )
