"""A plugin with every hook: what `pip install fedml-keylock-sample` would bring.

It registers a defense that protects nothing, an attack that guesses grey, and a
metric; and it writes down what it observes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from fedml_keylock import hookimpl
from fedml_keylock.defense import Defense, DefenseFactory
from fedml_keylock.inversion import Knowledge
from fedml_keylock.types import (
    Agreement,
    AttackerModel,
    ClientUpdate,
    Reconstruction,
)

OBSERVED: list[tuple[str, Any]] = []
"""What the observers saw, in order: (hook, what it was given)."""


class OpenDoor(Defense):
    """A defense that protects nothing: the least that a defense must have."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = dict(settings)

    def describe(self, model: nn.Module) -> Agreement:
        """What server and silos must agree on: here the model itself, and the settings."""
        state = model.state_dict()
        return Agreement(
            shapes={name: tuple(tensor.shape) for name, tensor in state.items()},
            dtypes={name: tensor.dtype for name, tensor in state.items()},
            constants={},
            layers=(),
            settings=self.settings,
        )

    def protect(self, model: nn.Module, *, silo: int | None, agreement: Agreement) -> str:
        """Change nothing."""
        return "open"

    def enter_silo(self, model: nn.Module, *, silo: int) -> str:
        """There is no private state to put in."""
        return f"silo {silo} is open"

    def attacker_model(self, model: nn.Module) -> AttackerModel:
        """Who knows this defense has the public model, and nothing in it is unknown to him."""
        return AttackerModel(deepcopy(model), (), lambda _count, _generator: {})

    def baseline(
        self, model: nn.Module, protected: nn.Module
    ) -> tuple[nn.Module, Mapping[str, torch.Tensor]]:
        """For a silo's audit of itself."""
        return deepcopy(protected), {}


class Grey:
    """An attack that guesses a grey image, whatever was sent: a floor for any other."""

    name = "grey"
    needs = frozenset[str]()
    uses = frozenset({"kind", "private state"})

    def reconstruct(
        self,
        updates: Sequence[ClientUpdate],
        model: nn.Module,
        *,
        knowledge: Knowledge,
        generator: torch.Generator,
        progress: Callable[[int, int], None] | None = None,
    ) -> Reconstruction:
        """Half of the bounds, everywhere."""
        count = len(updates)
        grey = sum(knowledge.bounds) / 2
        return Reconstruction(
            images=torch.full((count, knowledge.batch, *knowledge.input_shape), grey),
            labels=torch.zeros(count, knowledge.batch, dtype=torch.long),
            cost=torch.zeros(count),
            history=torch.zeros(1, count),
            diverged=torch.zeros(count, dtype=torch.long),
            attack=self.name,
            knowledge=knowledge.level,
        )


def grey() -> Grey:
    """The preset that `attacks: [grey]` names."""
    return Grey()


def mean_error(images: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of each image, ``(n, c, h, w)`` to ``(n,)``."""
    return (images - truth).abs().flatten(1).mean(1)


@hookimpl
def register_defenses(register: Callable[[str, DefenseFactory], None]) -> None:
    register("open_door", OpenDoor)


@hookimpl
def register_attacks(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("grey", grey)


@hookimpl
def register_metrics(register: Callable[[str, Callable[..., Any]], None]) -> None:
    register("mean_error", mean_error)


@hookimpl
def before_upload(update: ClientUpdate) -> None:
    OBSERVED.append(("before_upload", update))


@hookimpl
def after_upload(update: ClientUpdate) -> None:
    OBSERVED.append(("after_upload", update))


@hookimpl
def on_attack_error(attack: str, error: Exception) -> None:
    OBSERVED.append(("on_attack_error", (attack, error)))


@hookimpl
def after_report(report: dict[str, Any], folder: str) -> None:
    OBSERVED.append(("after_report", (report, folder)))
