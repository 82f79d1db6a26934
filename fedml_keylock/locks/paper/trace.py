"""Traces a model symbolically (torch.fx), without data and without changing the model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn

from ...tensors import buffers_kept
from .kinds import PARAMETRIC

__all__ = ["Tracer", "optional_arguments", "traced", "untouched"]


class Tracer(fx.Tracer):
    """Traces into every module except torch's own and those that can carry a lock.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
        >>> [node.op for node in Tracer().trace(model).nodes]
        ['placeholder', 'call_module', 'call_module', 'output']

    """

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        """Whether a module is a single node."""
        if isinstance(module, PARAMETRIC):
            return True
        return super().is_leaf_module(module, qualified_name)

    def call_module(self, module: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Like torch's; a module that cannot be traced and has nothing to lock becomes one node."""
        has_layers = any(isinstance(m, PARAMETRIC) for m in module.modules())
        if has_layers or self.is_leaf_module(module, ""):
            return super().call_module(module, forward, args, kwargs)
        before = list(self.graph.nodes)
        try:
            return super().call_module(module, forward, args, kwargs)
        except Exception:  # user code may reject a proxy in any way
            for node in reversed(list(self.graph.nodes)[len(before) :]):
                self.graph.erase_node(node)
            return self.create_proxy("call_module", self.path_of_module(module), args, kwargs)


def optional_arguments(model: nn.Module) -> dict[str, Any]:
    """The optional arguments of a model's forward, with their defaults.

    Example:
        >>> optional_arguments(nn.ConvTranspose2d(1, 1, 3))
        {'output_size': None}

    """
    parameters = inspect.signature(model.forward).parameters
    return {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }


def traced(model: nn.Module, *, training: bool = True) -> fx.Graph | None:
    """The graph of a model without optional arguments; None if it cannot be traced.

    Args:
        model: stays unchanged.
        training: in which mode; an auxiliary head runs in training only.

    Example:
        >>> len(traced(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())).nodes)
        4

    """
    given = optional_arguments(model)
    with untouched(model):
        model.train(training)
        try:
            return Tracer().trace(model, given)
        except Exception:  # user code may fail in any way; then nothing is known
            return None


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Undo what a forward pass changes in the model: attributes, buffers, training flags.

    Example:
        >>> import torch
        >>> model = nn.BatchNorm1d(2)
        >>> with untouched(model):
        ...     model.seen = model(torch.rand(3, 2))
        >>> hasattr(model, "seen"), model.num_batches_tracked
        (False, tensor(0))

    """
    tables = ("_parameters", "_buffers", "_modules")
    modules = list(model.modules())
    kept = [(vars(m).copy(), {t: vars(m)[t].copy() for t in tables}) for m in modules]
    try:
        with buffers_kept(modules):
            yield
    finally:
        for module, (attributes, contents) in zip(modules, kept, strict=True):
            vars(module).clear()
            vars(module).update(attributes)
            for table, content in contents.items():
                vars(module)[table].clear()
                vars(module)[table].update(content)
