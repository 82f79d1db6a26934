"""Rotates the parts of a model's state under one key in one round."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ...errors import LockError, UpdateRefused
from ...tensors import infinite_in, one_thread, raw
from ..job_key import JobKey
from .orthogonal import OrthogonalMatrix

__all__ = ["UNROTATED", "Part", "RoundRotation", "as_one", "digest", "integers_of", "parts_of"]

UNROTATED = -1
"""The round of the first model, which is not rotated: the server made it and knows it."""
LABEL = "rotation "
PARAMETERS = "parameters"
"""Label of the parameters' part."""


@dataclass(frozen=True)
class Part:
    """Entries of a state that are rotated as one vector.

    Attributes:
        label: of its random stream.
        names: in the model's state, in order.
        least: smallest valid number; None for no limit.

    """

    label: str
    names: tuple[str, ...]
    least: float | None = None


def parts_of(model: nn.Module) -> tuple[Part, ...]:
    """All parameters as one part, and each floating-point buffer as a part of its own.

    One part, so that a rotation leaves one length visible, not one for each layer. Buffers apart,
    because a running variance of thousands beside weights of hundredths would cost the weights
    precision. Integers, such as counts of batches, are shared unchanged.

    Raises:
        LockError: there is nothing to rotate, or a tensor has complex or infinite numbers.

    Example:
        >>> [part.label for part in parts_of(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))]
        ['parameters', '1.running_mean', '1.running_var']

    """
    state = model.state_dict()
    trained = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    odd = [n for n, t in state.items() if isinstance(t, Tensor) and t.is_complex()]
    if odd:
        raise LockError(f"{odd[0]}: lock: rotated cannot lock complex numbers")
    real = [n for n, t in state.items() if isinstance(t, Tensor) and t.is_floating_point()]
    for name in infinite_in(state):
        raise LockError(
            f"{name}: lock: rotated cannot rotate infinite numbers; use lock: sealed, or keep it "
            "out of the state (persistent=False)"
        )
    names = tuple(name for name in real if name in trained and state[name].numel())
    if not names:
        raise LockError(f"{type(model).__name__} has no parameters to lock")
    rest = [name for name in real if name not in trained and state[name].numel()]
    # rounding may make a variance of zero negative, which no norm accepts
    buffers = (Part(n, (n,), 0.0 if n.endswith("running_var") else None) for n in rest)
    return (Part(PARAMETERS, names), *buffers)


def integers_of(model: nn.Module) -> dict[str, torch.dtype]:
    """The entries of a model's state that are not floating point, with their types.

    Example:
        >>> integers_of(nn.BatchNorm1d(2))
        {'num_batches_tracked': torch.int64}

    """
    state = model.state_dict()
    return {
        name: tensor.dtype
        for name, tensor in state.items()
        if isinstance(tensor, Tensor) and not tensor.is_floating_point()
    }


class RoundRotation:
    """The rotations of all parts under one key in one round.

    Args:
        parts: see `parts_of`.
        key: of the job.
        round_index: from 0 on; UNROTATED for no rotation.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> rotation = RoundRotation(parts_of(model), JobKey(bytes(32)), 0)
        >>> state = model.state_dict()
        >>> back = rotation.rotate_back(rotation.rotate(state))
        >>> torch.allclose(back["weight"], state["weight"], atol=1e-6)
        True

    """

    def __init__(self, parts: Sequence[Part], key: JobKey, round_index: int) -> None:
        self.parts, self.key, self.round_index = tuple(parts), key, round_index
        self._matrices: dict[str, OrthogonalMatrix] = {}

    def rotate(self, state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """Rotate the entries of all parts. The state is not changed.

        Raises:
            UpdateRefused: an entry is missing.

        """
        return self._mapped(state, prefix, undo=False)

    def rotate_back(self, state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """Rotate the same entries back.

        Raises:
            UpdateRefused: an entry is missing.

        """
        return self._mapped(state, prefix, undo=True)

    # more threads round differently, and are slower where processes share cores
    @one_thread()
    @torch.no_grad()
    def _mapped(self, state: Mapping[str, Tensor], prefix: str, *, undo: bool) -> dict[str, Tensor]:
        if self.round_index == UNROTATED:
            return {}
        mapped: dict[str, Tensor] = {}
        for part in self.parts:
            names = [prefix + name for name in part.names]
            missing = [name for name in names if name not in state]
            if missing:
                raise UpdateRefused(
                    f"{missing[0]} is missing: a state under lock: rotated is one vector, and only "
                    "the whole of it can be sent or loaded: use lock: sealed for parts of a state"
                )
            mapped |= as_one(names, state, partial(self._rotate_part, part, undo=undo))
        return mapped

    def _rotate_part(self, part: Part, flat: Tensor, *, undo: bool) -> Tensor:
        matrix = self._matrix(part, len(flat))
        if not undo:
            return matrix.apply(flat)
        flat = matrix.undo(flat)
        return flat if part.least is None else flat.clamp(min=part.least)

    def _matrix(self, part: Part, size: int) -> OrthogonalMatrix:
        if part.label not in self._matrices:
            stream = self.key.stream(LABEL + part.label, self.round_index)
            self._matrices[part.label] = OrthogonalMatrix(size, stream)
        return self._matrices[part.label]


def as_one(
    names: Sequence[str], state: Mapping[str, Tensor], change: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Change some entries of a state as one vector in float64. The state is not changed.

    Example:
        >>> state = {"a": torch.zeros(2), "b": torch.zeros(1, 1)}
        >>> as_one(("a", "b"), state, lambda flat: flat + torch.arange(3))["b"]
        tensor([[2.]])

    """
    tensors = [state[name].detach() for name in names]
    changed = change(torch.cat([tensor.cpu().double().flatten() for tensor in tensors]))
    vectors = torch.split(changed, [tensor.numel() for tensor in tensors])
    return {
        # a copy: a view would be pickled with the whole vector
        name: vector.view(tensor.shape).to(tensor, copy=True)
        for name, tensor, vector in zip(names, tensors, vectors, strict=True)
    }


def digest(state: Mapping[str, Tensor]) -> bytes:
    """SHA-256 of all tensors of a state, by name.

    Example:
        >>> digest({"a": torch.zeros(1)}) == digest({"a": torch.ones(1)})
        False

    """
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(f"{name} {state[name].dtype} {tuple(state[name].shape)};".encode())
        found.update(raw(state[name]))
    return found.digest()
