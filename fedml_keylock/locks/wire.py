"""The base of locks at the wire: they change only what a silo sends and receives."""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import LockError
from ..tensors import deep_copy, sparse
from ..types import Credentials
from .description import LayerCheck, LockInfo, LockIssue, ModelCheck
from .entropy import Uniform
from .private import ATTRIBUTE, Private
from .protocol import Lock

__all__ = ["WireLock", "no_unknowns", "state_tensors"]


class WireLock(Lock):
    """A lock that attaches a handle to the model and leaves the model as it is."""

    HANDLE: ClassVar[type[Private]]
    """The class of the handle."""
    SENT: ClassVar[str]
    """How the model's numbers are sent, in one word."""
    SUMMARY: ClassVar[str]
    """What happens to the model's parameters."""

    # on a model

    @classmethod
    def is_on(cls, model: nn.Module) -> bool:
        """Whether a handle is attached to the model."""
        return isinstance(vars(model).get(ATTRIBUTE), cls.HANDLE)

    @abstractmethod
    def _locked_names(self, model: nn.Module) -> set[str]:
        """The entries of the model's state that the lock covers.

        Raises:
            LockError: there are none, or one cannot be locked.

        """

    @abstractmethod
    def _handle(self, model: nn.Module, secret: bytes) -> Private:
        """The handle for a silo on its own, without a job."""

    def _check(self, model: nn.Module) -> ModelCheck:
        if hasattr(model, ATTRIBUTE):
            return ModelCheck((LockIssue("", f"has an attribute named {ATTRIBUTE} of its own"),))
        for name, tensor in state_tensors(model).items():
            if problem := sparse(tensor):
                return ModelCheck((LockIssue("", f"{name} {problem}"),))
        try:
            locked = self._locked_names(model)
        except LockError as error:
            return ModelCheck((LockIssue("", str(error)),))
        owners = {name.rpartition(".")[0] for name in locked}
        layers = [n or type(model).__name__ for n, _ in model.named_modules() if n in owners]
        how = f"its numbers are sent {self.SENT}, with all others"
        return ModelCheck(
            issues=(),
            layers=tuple(LayerCheck(name, locked=True, how=how) for name in layers),
            shared=tuple(name for name in state_tensors(model) if name not in locked),
        )

    def _lock(self, model: nn.Module, *, key: Tensor | None, uniform: Uniform | None) -> None:
        if key is not None:
            raise LockError(f"a key is of lock: paper, and lock: {self.SENT} has none")
        if any(parameter.is_meta for parameter in model.parameters()):
            raise LockError(f"lock: {self.SENT} needs a model with values: take it off meta before")
        self.plan(model)
        handle = self._handle(model, self._draw(uniform))
        # not registered as a submodule: Sequential would run it, and parameter counts would include
        # it
        object.__setattr__(model, ATTRIBUTE, handle)

    def _draw(self, uniform: Uniform | None) -> bytes:
        """The secret of a silo on its own."""
        if uniform is None:
            return os.urandom(32)
        return bytes((256 * uniform((32,))).byte().tolist())

    @classmethod
    def info(cls, model: nn.Module) -> LockInfo:
        """Every layer is locked, and nothing in the model is private."""
        layers = [n for n, m in model.named_modules() if [*m.parameters(recurse=False)]]
        count = sum(p.numel() for p in model.parameters())
        summary = f"{cls.SENT}: {count:,} parameters {cls.SUMMARY}"
        return LockInfo((*layers,), ("",), 0, count, summary=summary)

    @staticmethod
    def unlock(model: nn.Module) -> None:
        """Remove the handle."""
        object.__delattr__(model, ATTRIBUTE)

    @classmethod
    def export(cls, model: nn.Module) -> nn.Module:
        """A copy without the handle: the model itself is plain."""
        plain = deep_copy(model).eval()
        cls.unlock(plain)
        return plain

    # as a job's defense

    @property
    def transforms_updates(self) -> bool:
        """True: updates are transformed before they leave the silo."""
        return True

    @property
    def wraps_model(self) -> bool:
        """False: the model is the job's own."""
        return False

    @property
    def credentials(self) -> Credentials | None:
        """The files with which silos agree on secrets."""
        own = self.config
        return Credentials(own.group_key, own.roster, own.identity, own.link_key)

    def begin_round(self, model: nn.Module, *, round_index: int) -> None:
        """Nothing: the model is the job's own."""

    def end_round(self, model: nn.Module, *, round_index: int) -> bool:
        """Nothing: what a silo keeps of a round is saved when it sends."""
        return True


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model's state, without other entries.

    Example:
        >>> sorted(state_tensors(nn.Linear(1, 1)))
        ['bias', 'weight']

    """
    return {n: t.detach() for n, t in model.state_dict().items() if isinstance(t, Tensor)}


def no_unknowns(_count: int, _generator: torch.Generator) -> dict[str, Tensor]:
    """The secret variables for an attacker to draw: none, since silos compute in the clear.

    Example:
        >>> no_unknowns(2, torch.Generator())
        {}

    """
    return {}
