"""Checks that a lock takes part in training: a lock without gradients protects nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from ...errors import LockError
from .module import locks

__all__ = ["Watch"]


class Watch:
    """Watches whether each lock gets gradients in a round, and whether its values change.

    A lock without gradients sits on a layer that the model does not run: it protects nothing. A
    lock with gradients that does not change is missing from the optimizer, which costs accuracy
    silently.
    """

    VISIBLE: ClassVar[float] = 1e-3
    """The least gradient, relative to its parameter, at which a step must show in float32."""

    def __init__(self, model: nn.Module) -> None:
        public = [p for n, p in model.named_parameters() if ".keylock." not in f".{n}"]
        trained = [p for p in public if p.requires_grad]
        # the last parameter, where every forward pass ends; it may be a bias, which an optimizer
        # made by name leaves out, so the last matrix as well
        self._kept = {"": _kept([*trained[-1:], *[p for p in trained if p.dim() > 1][-1:]])}
        watched = {"": trained[-1]} if trained else {}
        for name, _, lock in locks(model):
            # one changed vector is enough: gamma and beta have two each
            self._kept[name or "the model"] = _kept([p for p in lock.parameters() if p.dim() < 2])
            watched[name or "the model"] = lock.bias_beta
        self._scale = {n: float(p.detach().abs().max().clamp(min=1.0)) for n, p in watched.items()}
        self._largest: dict[str, float] = {}
        self._seen: dict[str, int] = {}
        self._handles = [
            p.register_hook(partial(self._see, n))  # type: ignore[no-untyped-call]  # torch has none
            for n, p in watched.items()
        ]

    def _see(self, name: str, gradient: Tensor) -> None:
        self._seen[name] = count = self._seen.get(name, 0) + 1
        # look at the first gradients, then ever fewer: on a small model every look costs time
        if count & (count - 1) == 0 and self._largest.get(name, 0.0) < self.VISIBLE:
            share = float(gradient.abs().max()) / self._scale[name]
            self._largest[name] = max(share, self._largest.get(name, 0.0))

    def finish(self, round_index: int) -> bool:
        """Whether the model trained at all; raises LockError if the lock took no part in it."""
        for handle in self._handles:
            handle.remove()
        if _still(self._kept.pop("")):
            # a silo without data, a step too small to see, or a trainer that only computes
            # gradients
            if "" in self._largest and all(map(_still, self._kept.values())):
                logging.warning(
                    "round %d took no step, neither of the model nor of its lock; a trainer that "
                    "sends gradients is to step the parameters with `keylock` in their names",
                    round_index,
                )
            return "" in self._largest
        for name, kept in self._kept.items():
            if name not in self._largest:
                raise LockError(
                    f"the lock on {name} got no gradient in round {round_index}: the model does "
                    "not run that layer as a lock needs it; name others in keylock.layers"
                )
            if _still(kept) and self._largest[name] >= self.VISIBLE:
                raise LockError(
                    f"the lock on {name} was not trained in round {round_index}: the trainer's "
                    "optimizer does not hold the lock's parameters; make it after the model is "
                    "locked, in train() or in __init__ after super().__init__(model, args), and of "
                    "all of model.parameters(): a choice by name must not leave out its keylock"
                )
        return True


def _kept(tensors: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(tensor, tensor.detach().clone()) for tensor in tensors]


def _still(kept: list[tuple[Tensor, Tensor]]) -> bool:
    return all(tensor.detach().equal(before.to(tensor.device)) for tensor, before in kept)
