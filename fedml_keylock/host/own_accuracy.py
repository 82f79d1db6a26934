"""Measures the shared model's accuracy in a silo, under the silo's own lock, and reports it.

The server has no key: it logs the accuracy of the model without one. A silo's accuracy has a name
of its own, so that nobody confuses the two.

FedML replaces the root logger by its own, which named loggers do not reach. So lines for FedML's
log go to the root logger.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..tensors import buffers_kept

__all__ = ["is_due", "measure", "measured"]


def is_due(args: Any, index: int) -> bool:
    """Whether FedML's server tests the average of the round with this index.

    Example:
        >>> from types import SimpleNamespace
        >>> args = SimpleNamespace(frequency_of_the_test=2, comm_round=4)
        >>> [is_due(args, index) for index in range(4)]
        [True, False, True, True]

    """
    every = int(getattr(args, "frequency_of_the_test", 0) or 0)
    return every > 0 and index >= 0 and index in {index // every * every, int(args.comm_round) - 1}


def measured(
    trainer: Any, model: nn.Module, data: Any, device: Any, args: Any, *, who: str
) -> float | None:
    """Like `measure`, but None on failure: a measurement must not end a job.

    Args:
        trainer: FedML's, whose `test` is the job's own.
        model: the silo's, with the server's weights.
        data: the silo's test data.
        device: to test on.
        args: FedML's.
        who: the silo's name in messages.

    """
    try:
        return measure(trainer, model, data, device, args)
    except Exception as error:  # from the user's own code and data
        logging.warning("%s: its accuracy cannot be measured: %s", who, type(error).__name__)
        return None


def measure(trainer: Any, model: nn.Module, data: Any, device: Any, args: Any) -> float | None:
    """The share of right answers, by the trainer's own test, or else by counting.

    It restores each layer's mode, the buffers, and the random states of torch, numpy and Python:
    without a lock no silo would test.

    Returns:
        None if there is nothing to count.

    Example:
        >>> from types import SimpleNamespace
        >>> data = [(torch.eye(2), torch.tensor([0, 0]))]
        >>> measure(SimpleNamespace(), nn.Identity(), data, "cpu", None)
        0.5

    """
    tested = (model, getattr(trainer, "model", None))
    models = [whole for whole in tested if isinstance(whole, nn.Module)]  # often the same twice
    modules = list(dict.fromkeys(module for whole in models for module in whole.modules()))
    modes = [(module, module.training) for module in modules]
    python, numpy = random.getstate(), np.random.get_state()
    try:
        # a test without model.eval() changes the statistics of norms
        with buffers_kept(modules), torch.random.fork_rng(devices=[]), torch.no_grad():
            test = getattr(trainer, "test", None)
            found = test(data, device, args) if test is not None else None
            if isinstance(found, Mapping) and {"test_correct", "test_total"} <= set(found):
                total = float(found["test_total"])
                return float(found["test_correct"]) / total if total else None
            return _count(model, data, device)
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for module, training in modes:
            module.training = training


def _count(model: nn.Module, data: Any, device: Any) -> float | None:
    """A classifier's share of right answers; None if it is none, or there are no data."""
    right = total = 0
    model.to(device).eval()
    for batch in data:
        scores, labels = model(batch[0].to(device)), batch[1].to(device)
        if not isinstance(scores, Tensor) or scores.dim() != 2 or labels.shape != scores.shape[:1]:
            return None
        right += int((scores.argmax(1) == labels).sum())
        total += len(labels)
    return right / total if total else None
