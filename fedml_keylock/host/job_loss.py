"""The loss that a job trains with: as its YAML names it, or as its trainer has it."""

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
"""What trainers call a loss of their own; torch.nn's are known by any name."""
_OWN = "fedml.ml.trainer."
_OF_TRAINER: Mapping[str, str] = {
    "ModelTrainerCLS": "CrossEntropyLoss()",
    "ModelTrainerNWP": "CrossEntropyLoss(ignore_index=0)",
    "ModelTrainerTAGPred": "BCELoss(reduction='sum')",
}
"""FedML's own trainers to what they minimise (fedml/ml/trainer)."""
_OF_DATASET: Mapping[str, str] = {
    "stackoverflow_lr": "ModelTrainerTAGPred",
    "fed_shakespeare": "ModelTrainerNWP",
    "stackoverflow_nwp": "ModelTrainerNWP",
}
"""The dataset to the trainer that FedML makes where a job brings none (trainer_creator.py)."""


def loss_of_job(named: str | None, args: Arguments, trainer: Any) -> Loss:
    """The loss that silos minimise; cross entropy, marked as assumed, where nothing tells it.

    Args:
        named: `gradient_inversion.loss`, if it is set.
        args: FedML's.
        trainer: the job's own; None for FedML's.

    Raises:
        ConfigError: there is no such loss, or it is not one that is attacked.

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
    if trainer is None or simulated == ("simulation", "sp"):  # there FedML drops a job's own
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
