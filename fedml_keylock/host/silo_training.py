"""Limits what a silo's local training may log, and checks that the locked model trained."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LockError, UpdateRefused

__all__ = ["check_trainer", "check_untrained", "quietly"]


@contextmanager
def quietly(logs: bool) -> Iterator[None]:
    """Drop log records of the training below errors, unless logging is allowed.

    FedML's trainers log every batch's loss, and mpiexec carries it to the server's host. For a
    model that the server knows, the loss reveals the label, and which of some images it was.
    """
    if logs:
        yield
        return
    level = logging.root.manager.disable
    logging.disable(max(level, logging.INFO))
    try:
        yield
    finally:
        logging.disable(level)


def check_trainer(trainer: Any, model: nn.Module, *, who: str) -> None:
    """Check that a trainer that holds a model holds the locked one, perhaps in a wrapper.

    Raises:
        LockError: it does not.

    """
    held = getattr(trainer, "model", None)  # it may have another name for it
    if isinstance(held, nn.Module) and not any(module is model for module in held.modules()):
        raise LockError(f"{who}: the trainer's model is not the one that was locked")


def check_untrained(state: Any, own: Mapping[str, Tensor], *, who: str) -> None:
    """Check that a silo whose locked model did not train sends only that model's state.

    Args:
        state: to be sent.
        own: the locked model's.
        who: the silo's name in messages.

    Raises:
        UpdateRefused: it trained another model, such as a copy.

    """
    for name, tensor in state.items() if isinstance(state, Mapping) else ():
        if not isinstance(tensor, Tensor) or name not in own or not tensor.any():
            continue
        if not torch.equal(tensor.cpu(), own[name].cpu()):
            raise UpdateRefused(
                f"{who}: what it would send was not trained in the locked model, which no gradient "
                f"reached ({name} differs); train the model that FedML gives the trainer, and not "
                "a copy of it"
            )
