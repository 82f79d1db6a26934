"""Finds the loss that a job trains with, from its YAML or its trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from ..errors import AttackError, ConfigError
from ..inversion import CROSS_ENTROPY, Loss, loss_of
from .job_configuration import Arguments

__all__ = ["loss_of_job"]

_FIELD = "gradient_inversion.loss"
_HELD = ("criterion", "criteria", "loss", "loss_fn", "loss_func", "loss_function")
"""Common names for a trainer's own loss; losses of torch.nn are found under any name."""
_OWN = "fedml.ml.trainer."
_OF_TRAINER: Mapping[str, str] = {
    "ModelTrainerCLS": "CrossEntropyLoss()",
    "ModelTrainerNWP": "CrossEntropyLoss(ignore_index=0)",
    "ModelTrainerTAGPred": "BCELoss(reduction='sum')",
}
"""The loss of each of FedML's own trainers (fedml/ml/trainer)."""
_OF_DATASET: Mapping[str, str] = {
    "stackoverflow_lr": "ModelTrainerTAGPred",
    "fed_shakespeare": "ModelTrainerNWP",
    "stackoverflow_nwp": "ModelTrainerNWP",
}
"""The trainer that FedML makes for each dataset if a job brings none (trainer_creator.py)."""


def loss_of_job(named: str | None, args: Arguments, trainer: Any) -> Loss:
    """The loss that silos minimise; cross entropy, marked as assumed, if nothing tells.

    Args:
        named: `gradient_inversion.loss`, if it is set.
        args: FedML's.
        trainer: the job's own; None for FedML's.

    Raises:
        ConfigError: there is no such loss, or attacks do not support it.

    Example:
        >>> from types import SimpleNamespace
        >>> job = SimpleNamespace(dataset="stackoverflow_lr")
        >>> str(loss_of_job(None, job, None))
        "BCELoss(reduction='sum')"
        >>> str(loss_of_job(None, job, SimpleNamespace(criterion=nn.MSELoss())))
        'MSELoss()'
        >>> str(loss_of_job(None, job, SimpleNamespace()))
        'CrossEntropyLoss(), assumed'

    """
    if named is not None:
        return loss_of(named, where=_FIELD)
    simulated = (getattr(args, "training_type", ""), getattr(args, "backend", ""))
    if trainer is None or simulated == ("simulation", "sp"):  # sp ignores a job's own trainer
        kind = _OF_DATASET.get(str(getattr(args, "dataset", "")), "ModelTrainerCLS")
        return loss_of(_OF_TRAINER[kind], where=_FIELD)
    trains = next((one for one in type(trainer).__mro__ if "train" in vars(one)), type(trainer))
    if trains.__module__.startswith(_OWN) and trains.__name__ in _OF_TRAINER:
        return loss_of(_OF_TRAINER[trains.__name__], where=_FIELD)
    held: dict[int, tuple[str, nn.Module]] = {}
    for owner in (*reversed(type(trainer).__mro__), trainer):
        for name, value in getattr(owner, "__dict__", {}).items():
            known = type(value).__module__ == nn.modules.loss.__name__
            if isinstance(value, nn.Module) and (known or name in _HELD):
                held[id(value)] = name, value
    if len(held) != 1:
        return replace(CROSS_ENTROPY, assumed=True)
    ((name, module),) = held.values()
    try:
        return Loss.of(module, name=f"the trainer's {name}, {type(module).__name__}")
    except AttackError as error:
        raise ConfigError(f"{_FIELD}: the trainer's {name}: {error}") from None
