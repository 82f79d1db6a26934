"""How well the shared model does in a silo, under the silo's own lock, told where FedML tells.

The server has no key: the accuracy that it logs is the model's without one. A silo's goes under a
name that nobody mistakes for it.

FedML puts a logger of its own in the root's place, which no named logger leads to: lines for
FedML's log go to the root.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .silo_round import SiloRound

__all__ = ["measure", "report"]


def report(
    turn: SiloRound, model: nn.Module, trainer: Any, data: Any, device: Any, args: Any
) -> None:
    """Measure the silo's accuracy under its own lock and tell it. Training goes on in any case.

    Args:
        turn: the silo's, with the index of the round whose aggregate it measures.
        model: the silo's, with its lock and the weights that the server sent in place.
        trainer: FedML's, whose `test` is the job's own notion of a test.
        data: the silo's test data.
        device: to test on.
        args: FedML's.

    """
    try:
        share = measure(trainer, model, data, device, args)
    except Exception as error:  # the user's own code and data; a job is not to end by a measurement
        logging.warning("%s: its accuracy cannot be measured: %s", turn.who, error)
        return
    if share is None:
        return
    logging.info(
        "silo %s, aggregate of round %d: accuracy with its own key %.4f (the server's own figure "
        "is without any key)",
        turn.silo,
        turn.round,
        share,
    )
    turn.tell_score("accuracy_with_own_key", share)


def measure(trainer: Any, model: nn.Module, data: Any, device: Any, args: Any) -> float | None:
    """The share of right answers, by the trainer's own test or else by counting.

    It restores the model's mode and torch's random numbers.

    Returns:
        None where there is nothing to count.

    Example:
        >>> from types import SimpleNamespace
        >>> data = [(torch.eye(2), torch.tensor([0, 0]))]
        >>> measure(SimpleNamespace(), nn.Identity(), data, "cpu", None)
        0.5

    """
    training = model.training
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            test = getattr(trainer, "test", None)
            found = test(data, device, args) if test is not None else None
            if isinstance(found, Mapping) and {"test_correct", "test_total"} <= set(found):
                total = float(found["test_total"])
                return float(found["test_correct"]) / total if total else None
            return _count(model, data, device)
    finally:
        model.train(training)


def _count(model: nn.Module, data: Any, device: Any) -> float | None:
    """The share of right answers of a classifier; None if it is none, or there are no data."""
    right = total = 0
    model.to(device).eval()
    for batch in data:
        scores, labels = model(batch[0].to(device)), batch[1].to(device)
        if not isinstance(scores, Tensor) or scores.dim() != 2 or labels.shape != scores.shape[:1]:
            return None
        right += int((scores.argmax(1) == labels).sum())
        total += len(labels)
    return right / total if total else None
