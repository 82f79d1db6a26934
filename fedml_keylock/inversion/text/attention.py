"""Finds a transformer's self-attention layers, their inputs, and what their gradients span."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import AttackError, first_line
from ...tensors import under
from ..engine.layer_inputs import watch
from .span import Span, span_of

__all__ = ["AttentionLayer", "attention_layers"]

_FUSED = ("c_attn", "query_key_value", "qkv_proj")
_VALUE = ("v_proj", "value", "v_lin", "v")
_QUERY = ("q_proj", "query", "q_lin", "q")
"""Names in transformers for the query projections of self-attention layers."""
_NUMBERS = 2**22
"""Largest number of input values to compute at once."""


class _ReachedError(Exception):
    """Raised when the layer is reached: the rest of the model need not run."""


class AttentionLayer:
    """One self-attention layer of a model.

    Attributes:
        name: its name in the model.
        projections: those that are used, by name; each gets the layer's own input.

    """

    def __init__(self, model: nn.Module, name: str, projections: Mapping[str, nn.Module]) -> None:
        self.model, self.name, self.projections = model, name, projections

    @torch.no_grad()
    def inputs(self, tokens: Tensor) -> Tensor:
        """The layer's input for token ids ``(n, length)``: ``(n, length, width)``."""
        got: list[Tensor] = []

        def keep(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            got.append(inputs[0].detach())
            raise _ReachedError

        hook = next(iter(self.projections.values())).register_forward_pre_hook(keep)
        found = []
        size = max(1, _NUMBERS // (tokens.shape[1] * self._width))
        try:
            for some in torch.split(tokens, size):
                try:
                    self.model(some)
                except _ReachedError:
                    found.append(got.pop())
        finally:
            hook.remove()
        return torch.cat(found)

    def span(self, gradients: Mapping[str, Tensor], *, causal: bool) -> Span:
        """The span of the layer's inputs, from a model's gradients by weight name.

        In a causal model the value projection's gradient contains every input that the loss depends
        on; the query's lacks the first of each text. In an encoder whose attention is nearly
        uniform the value's is nearly the same for each token, and the query's is not. The other
        projection is added if the first has fewer rows than inputs are wide: grouped queries, or an
        adapter. Both have equal weight.

        Raises:
            AttackError: the layer is frozen, or its gradient is zero or of an unknown form.

        """
        rows = []
        kinds = (_FUSED, _VALUE, _QUERY) if causal else (_FUSED, _QUERY, _VALUE)
        chosen = [
            (name, module)
            for kind in kinds
            for name, module in self.projections.items()
            if name.rpartition(".")[2] in kind
        ]
        for name, module in chosen:
            rows += [r for r in _rows(name, module, gradients) if r.any()]
            if rows and sum(map(len, rows)) >= self._width:
                break
        if not rows:
            self._refuse(gradients)
        return span_of(torch.cat([r / r.norm() for r in rows]))

    def _refuse(self, gradients: Mapping[str, Tensor]) -> None:
        names = [n for name, m in self.projections.items() for n in _weights(name, m)]
        where = f"the self-attention layer {self.name}"
        if not any(name in gradients for name in names):
            raise AttackError(f"{where} is frozen: its inputs are in no gradient")
        if any(".lora_A." in name for name in names):
            raise AttackError(
                f"{where} has adapters whose first matrix has no gradient: LoRA's second matrix is "
                "zero before the first step; take an update of a later round"
            )
        raise AttackError(f"{where} has a gradient of zero")

    @property
    def _width(self) -> int:
        inner = _inner(next(iter(self.projections.values())))
        assert isinstance(inner.weight, Tensor)
        return inner.weight.shape[1 if isinstance(inner, nn.Linear) else 0]


def _inner(module: nn.Module) -> nn.Module:
    """The layer itself, inside any adapter."""
    inner = getattr(module, "base_layer", module)
    assert isinstance(inner, nn.Module)
    return inner


def _weights(name: str, module: nn.Module) -> list[str]:
    """Names of the weights that multiply the layer's input."""
    adapters = getattr(module, "lora_A", None)
    if adapters is not None:
        return [f"{name}.lora_A.{adapter}.weight" for adapter in adapters]
    return [under(name, "weight")]


def _rows(name: str, module: nn.Module, gradients: Mapping[str, Tensor]) -> list[Tensor]:
    """A projection's gradients ``(m, width)``, whose row space contains the inputs."""
    found = [gradients[one] for one in _weights(name, module) if one in gradients]
    if hasattr(module, "lora_A") or isinstance(module, nn.Linear):
        return found
    return [gradient.T for gradient in found]  # transformers' Conv1D, (width, m)


def attention_layers(model: nn.Module, tokens: Tensor) -> list[AttentionLayer]:
    """A model's self-attention layers, in the order in which they run on ``(1, length)`` ids.

    Raises:
        AttackError: there are fewer than two, or the model does not accept such tokens.

    """
    known = (*_FUSED, *_VALUE, *_QUERY)
    named = {n: m for n, m in model.named_modules() if n.rpartition(".")[2] in known}
    calls, error = watch(model, named, tokens)
    if error is not None:
        raise AttackError(
            f"the model does not take tokens of shape {tuple(tokens.shape)}: {first_line(error)}"
        ) from error
    grouped: dict[str, dict[str, nn.Module]] = {}
    for name, module, _ in calls:
        inner = _inner(module)
        if not isinstance(inner, nn.Linear) and type(inner).__name__ != "Conv1D":
            continue
        grouped.setdefault(name.rpartition(".")[0], {})[name] = module
    layers = [AttentionLayer(model, name, some) for name, some in grouped.items()]
    if len(layers) < 2:
        raise AttackError(
            f"the model has {len(layers)} self-attention layers whose projections are known "
            f"({', '.join(known)}), and two are needed"
        )
    return layers
