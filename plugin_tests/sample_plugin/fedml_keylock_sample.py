"""A plugin with every hook: what `pip install fedml-keylock-sample` would bring.

It registers a defense that protects nothing, an attack that guesses grey, and a
metric; and it writes down what it observes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from fedml_keylock import hookimpl
from fedml_keylock.types import Agreement, ClientUpdate, DefenseFactory, Reconstruction

OBSERVED: list[tuple[str, Any]] = []
"""What the observers saw, in order: (hook, what it was given)."""


class OpenDoor:
    """A defense that protects nothing: the least that a defense must have."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = dict(settings)

    def describe(self, model: torch.nn.Module) -> Agreement:
        state = model.state_dict()
        return Agreement(
            shapes={name: tuple(tensor.shape) for name, tensor in state.items()},
            dtypes={name: tensor.dtype for name, tensor in state.items()},
            constants={},
            layers=(),
            settings=self.settings,
        )

    def protect(self, model: torch.nn.Module, *, silo: int | None, agreement: Agreement) -> str:
        return "open"

    def enter_silo(self, model: torch.nn.Module, *, silo: int) -> str:
        return f"silo {silo} is open"

    def begin_round(self, model: torch.nn.Module, *, round_index: int) -> None:
        pass

    def end_round(self, model: torch.nn.Module, *, round_index: int) -> None:
        pass


class Grey:
    """An attack that guesses a grey image, whatever was sent: a floor for any other."""

    def reconstruct(
        self, update: ClientUpdate, model: torch.nn.Module, *, knowledge: Any
    ) -> Reconstruction:
        images = torch.full((1, knowledge.batch, *knowledge.input_shape), 0.5)
        nothing = torch.zeros(1)
        return Reconstruction(
            images=images,
            labels=torch.zeros(1, knowledge.batch, dtype=torch.long),
            cost=nothing,
            history=nothing[None],
            diverged=nothing.long(),
            attack="grey",
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
