"""How well the shared model does in a silo, under the silo's own lock, told where FedML tells.

The server has no key: the accuracy that it logs is the model's without one. A silo's goes under a
name that cannot be taken for it.

FedML puts a logger of its own in the root's place, which no named logger leads to: what is to be in
FedML's log is said to the root.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .session import Session

__all__ = ["measure", "report"]


def report(session: Session, trainer: Any, data: Any, device: Any) -> None:
    """Measure the silo's accuracy under its own lock and tell it. Training goes on in any case.

    Args:
        session: the silo's, with its lock and the model that the server sent in place.
        trainer: FedML's, whose `test` is the job's own notion of a test.
        data: the silo's test data.
        device: to test on.

    """
    if data is None or session.model is None:
        return
    name, last = f"keylock/silo_{session.silo}/accuracy_with_own_key", session.last_round
    try:
        share = measure(trainer, session.model, data, device, session.args)
    except Exception as error:  # the user's own code and data; a job is not to end by a measurement
        logging.warning("%s: its accuracy cannot be measured: %s", session.who, error)
        return
    if share is None:
        return
    logging.info(
        "silo %s, aggregate of round %d: accuracy with its own key %.4f (the server's own figure "
        "is without any key)",
        session.silo,
        last,
        share,
    )
    session.tell({name: round(share, 4), "round": last})


def measure(trainer: Any, model: nn.Module, data: Any, device: Any, args: Any) -> float | None:
    """The share of right answers, by the trainer's own test or else by counting.

    Neither the model's mode nor torch's random numbers are others afterwards.

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
